"""Fill a table from whole networks: time random plans, and fit the entries of the segments alone to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from layerfold.graph.network import Network
from layerfold.profiler.fitted import ISOLATED, PLANS, SCALES, beliefs_of, fitted_table, growth_of
from layerfold.profiler.plan_timing import PlanTimer
from layerfold.profiler.random_plans import covering_solutions, promising_segments
from layerfold.progress import progress_bar
from layerfold.tables import LatencyEntry, LatencyTable, Provenance

_LEAST_PLANS, _MOST_PLANS = 24, 60
_POOL = 5


def fit_to_plans(
    net: Network,
    isolated: Sequence[LatencyEntry],
    fixed_ms: float,
    timer: PlanTimer,
    num_plans: int | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[LatencyEntry], float, dict[str, Any]]:
    """Time random plans of a network and fit its entries to them.

    The first half of the plans hold every promising segment about equally often; the second half are those, out of
    many, that leave the least uncertainty given the first (:meth:`Beliefs.most_informative`).

    Args:
        net: the traced network.
        isolated: entries of the segments alone.
        fixed_ms: latency outside the chains.
        timer: times the plans.
        num_plans: how many; None for one a promising shape, 24 at least and 60 at most.
        seed: of the random plans.
        progress: show a bar on stderr.

    Returns:
        Entries that add up, the fixed part, and what the table's provenance must remember to be fitted again.
    """
    chains = tuple((chain.start, chain.end) for chain in net.chains)
    provenance = Provenance(kind="latency", network_hash=net.hash, chains=chains, fixed_ms=fixed_ms)
    alone = LatencyTable(isolated, provenance=provenance)
    growth = growth_of(isolated)
    if num_plans is None:
        shapes = {net.segment(*segment).signature for segment in promising_segments(growth)}
        num_plans = min(max(len(shapes), _LEAST_PLANS), _MOST_PLANS)
    table = fitted_table(alone, beliefs_of(alone), original_ms=timer.original_ms())
    if num_plans > 0:
        first = covering_solutions(net, growth, math.ceil(num_plans / 2), seed)
        with progress_bar("profile: whole networks", num_plans, enabled=progress) as bar:
            measured = timer.measure(first, advance=bar.advance)
            seen = {plan[1] for plan in first}
            pool = [p for p in covering_solutions(net, growth, _POOL * num_plans, seed + 1) if p[1] not in seen]
            chosen = beliefs_of(table, measured).most_informative([plan[1] for plan in pool], num_plans - len(first))
            measured += timer.measure([pool[index] for index in chosen], advance=bar.advance)
        table = fitted_table(table, beliefs_of(table, measured))
    options = table.provenance.options
    return list(table.entries), table.provenance.fixed_ms, {key: options[key] for key in (ISOLATED, SCALES, PLANS)}
