"""What is removed for nothing, straight from the definitions, for the oracles. Shares no code with the solver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from layerfold.solver import Limits
from layerfold.tables import LatencyEntry
from tests.oracles.instances import Problem

Segment = tuple[int, int]


def may_be_bare(problem: Problem) -> frozenset[int]:
    """Return where merging may stop without an activation: slots that some importance says may be empty."""
    if problem.limits.allow_bare_stops:
        return frozenset(range(problem.latencies[0].chains[-1][1]))
    return frozenset(
        position
        for entry in problem.importance.entries
        for position, state in ((entry.start, entry.start_act), (entry.end, entry.end_act))
        if not state
    )


def costs_of(problem: Problem, entries: list[LatencyEntry]) -> tuple[float, ...]:
    """Return everything that a segment may cost: per device, and what is capped. ``entries``: its, one per device."""
    limits = problem.limits
    costs = [each.latency_ms for each in entries]
    if problem.risk is not None:
        costs += [each.spread_ms**2 for each in entries]
    is_nothing = entries[0].merged == "identity"
    if limits.max_params is not None:
        costs.append(0.0 if is_nothing else float(entries[0].params or 0))
    if limits.max_macs is not None:
        costs.append(0.0 if is_nothing else float(entries[0].macs or 0))
    if limits.max_merged is not None:
        costs.append(float(entries[0].end - entries[0].start > 1 and not is_nothing))
    return tuple(costs)


def whole_costs(problem: Problem) -> dict[Segment, tuple[float, ...]]:
    """Return the costs of every segment that may be used and keeps all its layers."""
    segments = [
        (entry.start, entry.end)
        for entry in problem.latencies[0].entries
        if not entry.drops and not _is_forbidden(entry, problem.limits)
    ]
    return {each: costs_of(problem, [table.entry(*each) for table in problem.latencies]) for each in segments}


def is_worth_it(
    problem: Problem,
    segment: Segment,
    costs: tuple[float, ...],
    whole: Mapping[Segment, tuple[float, ...]],
    *,
    drops: bool = False,
) -> bool:
    """Say whether a segment is not beaten: by its layers in parts, or with ``drops`` by all its layers in any way.

    Parts beat it if they cost no more of anything and less of something; all its layers beat it at equal costs too.
    """
    if problem.limits.allow_bare_stops:
        return True
    for parts in _parts(*segment, whole):
        if len(parts) == 1 and not drops:
            continue
        sums = tuple(map(sum, zip(*(whole[part] for part in parts), strict=True)))
        no_more = all(x <= y for x, y in zip(sums, costs, strict=True))
        if no_more and (drops or sums != costs):
            return False
    return True


def _parts(start: int, end: int, whole: Mapping[Segment, tuple[float, ...]]) -> Iterator[list[Segment]]:
    if start == end:
        yield []
    for stop in range(start + 1, end + 1):
        if (start, stop) in whole:
            for rest in _parts(stop, end, whole):
                yield [(start, stop), *rest]


def _is_forbidden(entry: LatencyEntry, limits: Limits) -> bool:
    return entry.end - entry.start > 1 and any(entry.start < layer <= entry.end for layer in limits.never_merge)
