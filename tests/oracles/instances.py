"""Random problems that are small enough to enumerate, built valid rather than filtered."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

from layerfold.solver import Frontier, Limits, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a solver and its oracles are given.

    Attributes:
        latencies: one table per device.
        importance: of the same segments.
        limits, risk, alpha: as for ``solve_frontier``.
        budgets_ms: end-to-end, one per device.
    """

    latencies: tuple[LatencyTable, ...]
    importance: ImportanceTable
    limits: Limits = field(default_factory=Limits)
    risk: float | None = None
    alpha: float = 0.0
    budgets_ms: tuple[float, ...] = ()

    def frontier(self, *, epsilon: float = 0.0) -> Frontier:
        """Solve it; raises what ``solve_frontier`` does."""
        return solve_frontier(
            self.latencies, self.importance, self.alpha, limits=self.limits, risk=self.risk, epsilon=epsilon
        )


def random_problem(seed: int, *, most_layers: int = 6, most_devices: int = 2, plain: bool = False) -> Problem:
    """Return a problem of one to three chains.

    Half of them have small whole numbers, so that ties are common.

    Args:
        most_layers: layers over all chains.
        most_devices: 1 or 2.
        plain: one device, no limits, no risk: what the published algorithm can answer.
    """
    rng = random.Random(seed)
    whole = rng.random() < 0.5

    def number(low: float, high: float) -> float:
        return float(rng.randint(round(low), round(high))) if whole else rng.uniform(low, high)

    chains = _chains(rng, most_layers)
    empty = {position for start, end in chains for position in range(start + 1, end + 1) if rng.random() < 0.35}
    starts, ends = {start for start, _ in chains}, {end for _, end in chains}
    segments = [
        (start, end)
        for first, last in chains
        for start in range(first, last)
        for end in range(start + 1, last + 1)
        if end == start + 1 or rng.random() < 0.7
    ]
    num_devices = 1 if plain else rng.choice([1] * 3 + [most_devices])
    scale_and_fixed = [(rng.choice([1.0, 1.25]), rng.choice([0.0, 0.5])) for _ in range(num_devices)]
    tables = []
    for device in range(num_devices):
        entries = [
            LatencyEntry(
                start=start,
                end=end,
                latency_ms=number(1, 4) * (end - start) ** rng.uniform(0.3, 1.2) + 0.5 * whole,
                spread_ms=rng.uniform(0.0, 0.4),
                macs=rng.randint(1, 9) * (end - start),
                params=rng.randint(1, 9) * (end - start),
            )
            for start, end in segments
        ]
        scale, fixed_ms = scale_and_fixed[device]
        provenance = Provenance(
            kind="latency", chains=tuple(chains), scale=scale, fixed_ms=fixed_ms, device=f"device {device}"
        )
        tables.append(LatencyTable(entries, provenance=provenance))
    importance_entries, left_out = [], []
    for start, end in segments:
        if end > start + 1 and rng.random() < 0.1:
            left_out.append((start, end))
            continue
        pairs = [
            (a, b)
            for a in _states(start, start in starts and _is_start(start, end, chains), empty, False)
            for b in _states(end, False, empty, end in ends)
        ]
        kept = [pair for pair in pairs if rng.random() < 0.85] or pairs[:1]
        for a, b in pairs if end == start + 1 else kept:
            importance_entries.append(
                ImportanceEntry(
                    start=start,
                    end=end,
                    start_act=a,
                    end_act=b,
                    importance=-number(0, 3) * (end - start - 0.5) + number(0, 1),
                )
            )
    rng.shuffle(importance_entries)
    importance = ImportanceTable(
        importance_entries, provenance=Provenance(kind="importance", chains=tuple(chains), left_out=tuple(left_out))
    )
    problem = Problem(latencies=tuple(tables), importance=importance, alpha=rng.choice([0.0, 0.0, 0.7]))
    problem = replace(problem, budgets_ms=_budgets(rng, tables))
    if plain:
        return replace(problem, alpha=0.0)
    limits = _limits(rng, chains, tables[0])
    limits = replace(limits, allow_bare_stops=random.Random(f"bare stops {seed}").random() < 0.15)
    return replace(problem, limits=limits, risk=rng.choice([None, None, None, 0.05, 0.3]))


def _budgets(rng: random.Random, tables: list[LatencyTable]) -> tuple[float, ...]:
    """Return budgets near the latencies of a random way through the first table's segments."""
    segments = []
    for start, end in tables[0].chains:
        while start < end:
            start, stop = rng.choice([(e.start, e.end) for e in tables[0].entries if e.start == start and e.end <= end])
            segments.append((start, stop))
            start = stop
    return tuple(
        table.end_to_end_ms(table.sum_ms(segments)) * rng.choice([1.0, rng.uniform(0.9, 1.6)]) for table in tables
    )


def _chains(rng: random.Random, most_layers: int) -> list[tuple[int, int]]:
    layers = rng.randint(1, most_layers)
    cuts = sorted(rng.sample(range(1, layers), min(rng.choice([0, 0, 0, 1, 2]), layers - 1)))
    edges = [0, *cuts, layers]
    return list(itertools.pairwise(edges))


def _is_start(start: int, end: int, chains: list[tuple[int, int]]) -> bool:
    return any(first == start and end <= last for first, last in chains)


def _states(position: int, is_start: bool, empty: set[int], is_end: bool) -> list[int]:
    if is_start:
        return [1]
    if is_end:
        return [0 if position in empty else 1]
    return [0, 1] if position in empty else [1]


def _limits(rng: random.Random, chains: list[tuple[int, int]], table: LatencyTable) -> Limits:
    inner = [position for start, end in chains for position in range(start + 1, end)]
    layers = chains[-1][1]
    limits = Limits()
    if rng.random() < 0.25:
        limits = replace(limits, max_params=rng.randint(4, 9) * layers)
    if rng.random() < 0.2:
        limits = replace(limits, max_macs=rng.randint(4, 9) * layers)
    if rng.random() < 0.25:
        limits = replace(limits, max_merged=rng.randint(0, 2))
    if inner and rng.random() < 0.2:
        limits = replace(limits, keep_activations=frozenset(rng.sample(inner, 1)))
    if rng.random() < 0.2:
        limits = replace(limits, never_merge=frozenset([rng.randint(1, layers)]))
    return limits
