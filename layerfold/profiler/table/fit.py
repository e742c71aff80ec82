"""Make entries that add up: segments between their neighbours, then fitted to whole networks under random plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from layerfold.files import JsonObject
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.profiler.plans.draw import covering_solutions, promising_segments
from layerfold.profiler.plans.fitted import ALONE, ISOLATED, PLANS, SCALES, beliefs_of, fitted_table, growth_of
from layerfold.profiler.plans.timer import PlanTimer
from layerfold.profiler.table.neighbours import NeighbourTimer
from layerfold.progress import progress_bar
from layerfold.tables import LatencyEntry, LatencyTable, Provenance
from layerfold.tables.kernel import IDENTITY, SegmentKey

_LEAST_PLANS, _MOST_PLANS = 16, 40
_FLOOR = 0.05
_POOL = 5
_SEED = 0
"""Of the random plans: the same in every table."""


def fit_to_plans(
    net: Network,
    segments: Sequence[Segment],
    isolated: Sequence[LatencyEntry],
    fixed_ms: float,
    timer: PlanTimer,
    neighbours: NeighbourTimer,
    num_plans: int | None = None,
    *,
    progress: bool = True,
) -> tuple[list[LatencyEntry], float, JsonObject]:
    """Time promising segments between their neighbours, then random plans, and fit the entries to them.

    The first half of the plans hold every promising segment about equally often; the second half are those, out of
    many, that leave the least uncertainty given the first (:meth:`Beliefs.most_informative`).

    Args:
        net: the traced network.
        segments: what the entries are of.
        isolated: entries of the segments alone, in the same order.
        fixed_ms: latency outside the chains.
        timer: times the plans.
        neighbours: times segments between their neighbours.
        num_plans: how many; None for one per promising shape, 16 at least and 40 at most.
        progress: show a bar on stderr.

    Returns:
        Entries that add up, the fixed part, and what the table's provenance must remember to be fitted again.
    """
    chains = tuple((chain.start, chain.end) for chain in net.chains)
    provenance = Provenance(kind="latency", network_hash=net.hash, chains=chains, fixed_ms=fixed_ms)
    original_ms = timer.original_ms()
    growth = growth_of(isolated)
    by_key = {segment.key: segment for segment in segments}
    changes = {key: segment.change for key, segment in by_key.items()}
    promising = [by_key[key] for key in promising_segments(growth)]
    with progress_bar("profile: between neighbours", len(promising), enabled=progress) as bar:
        changes_ms = neighbours.changes_ms(promising, bar.advance)
    alone_ms = {entry.key: entry.latency_ms for entry in isolated}
    singles_ms = math.fsum(alone_ms[m, m + 1] for start, end in chains for m in range(start, end))
    entries = _with_changes(isolated, changes_ms, singles_ms / max(original_ms - fixed_ms, _FLOOR * original_ms))
    alone = LatencyTable(entries, provenance=provenance)
    growth = growth_of(entries)
    if not any(segment.is_changed for segment in segments):
        num_plans = 0  # every plan would be the original
    elif num_plans is None:
        num_plans = usual_num_plans(promising)
    table = fitted_table(alone, beliefs_of(alone), original_ms=original_ms)
    if num_plans > 0:
        first = covering_solutions(net, growth, math.ceil(num_plans / 2), _SEED, changes=changes)
        what = "profile: whole networks"
        with progress_bar(what, num_plans, enabled=progress) as bar:

            def say_unsure(number: int) -> None:
                bar.describe(f"{what}, {number} unclear, once more")

            measured = timer.measure(first, advance=bar.advance, on_unsure=say_unsure)
            bar.describe(what)
            seen = {plan[1:] for plan in first}
            more = covering_solutions(net, growth, _POOL * num_plans, _SEED + 1, changes=changes)
            pool = [plan for plan in more if plan[1:] not in seen]
            chosen = beliefs_of(table, measured).most_informative(pool, num_plans - len(first))
            measured += timer.measure([pool[index] for index in chosen], advance=bar.advance, on_unsure=say_unsure)
        table = fitted_table(table, beliefs_of(table, measured))
    options = table.provenance.options
    remembered = {key: options[key] for key in (ISOLATED, SCALES, PLANS)}
    remembered[ALONE] = [entry.latency_ms for entry in isolated]
    return list(table.entries), table.provenance.fixed_ms, remembered


def usual_num_plans(promising: Sequence[Segment]) -> int:
    """Return how many whole networks to time: one per promising shape, within bounds."""
    return min(max(len({segment.signature for segment in promising}), _LEAST_PLANS), _MOST_PLANS)


def _with_changes(
    isolated: Sequence[LatencyEntry], changes_ms: Mapping[SegmentKey, float], units: float
) -> list[LatencyEntry]:
    """Return the entries with those of segments timed between neighbours put in place.

    Args:
        isolated: segments alone.
        changes_ms: what merging changes, in ms of the network.
        units: ms alone for each ms in the network, of single layers; the table will turn them back.
    """
    alone_ms = {entry.key: entry.latency_ms for entry in isolated}
    entries = []
    for entry in isolated:
        change_ms = changes_ms.get(entry.key)
        if change_ms is not None:
            layers_ms = math.fsum(alone_ms[m, m + 1] for m in range(entry.start, entry.end))
            least_ms = 0.0 if entry.merged == IDENTITY else _FLOOR * layers_ms
            entry = replace(entry, latency_ms=max(layers_ms + units * change_ms, least_ms))
        entries.append(entry)
    return entries
