"""The solver with changed layers against enumeration: every choice of rows, layers and merge positions, by definition.

A solution is a sequence of importance rows through each chain, each of which says which layers a lever changes between
its two positions, and merge positions S. Its importance is the sum over rows. S holds every position with an
activation; a position between two rows that has none may be left out of S where both rows change no layer. Inside a
row, S holds only slots that may be empty. Each segment between two positions of S needs a latency entry that changes
just what the rows change there; what is removed for nothing, by :mod:`tests.oracles.rules`, is no solution. Shares no
code with ``layerfold.solver``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product
from statistics import NormalDist

from layerfold.errors import InfeasibleBudgetError, MissingEntryError
from layerfold.solver import solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable
from layerfold.tables.levers import Change
from tests.oracles.instances import Problem, random_problem
from tests.oracles.rules import costs_of, is_worth_it, may_be_bare, whole_costs

TOLERANCE = 1e-9

Marks = tuple[tuple[int, str], ...]
"""(layer, word of the lever that changes it), rising."""


def random_drop_problem(seed: int, *, most_layers: int = 5, others: Sequence[str] = ()) -> Problem:
    """Return a problem of one to three chains in which segments may lose layers, or have some changed by ``others``."""
    rng = random.Random(f"drops {seed}")
    problem = random_problem(seed, most_layers=most_layers)
    first, importance = problem.latencies[0], list(problem.importance.entries)
    options: list[tuple[int, int, str, Change]] = []
    for start, end in sorted(first.segments):
        layers = range(start + 1, end + 1)
        subsets = [kept for count in range(len(layers)) for kept in combinations(layers, count)]
        for kept in rng.sample(subsets, min(len(subsets), rng.choice([0, 0, 1, 1, 2, 3]))):
            name = f"{2 * len(options) + 3}x1" if kept else "identity"
            word = rng.choice(("drop", *others)) if others else "drop"
            name = name if word == "drop" else f"{2 * len(options) + 3}x1 +{word}"
            lost = tuple(index for index in layers if index not in kept)
            options.append((start, end, name, Change(word, lost)))
    tables = []
    for table in problem.latencies:
        entries = list(table.entries)
        for start, end, name, change in options:
            whole = table.entry(start, end).latency_ms
            is_free = name == "identity" and rng.random() < 0.7
            share = rng.choice([0.5, 1.0]) if rng.random() < 0.5 else rng.uniform(0.2, 1.1)
            entries.append(
                LatencyEntry(
                    start=start,
                    end=end,
                    latency_ms=0.0 if is_free else whole * share,
                    merged=name,
                    change=change,
                    spread_ms=0.0 if is_free else rng.uniform(0.0, 0.4),
                    macs=rng.randint(0, 6),
                    params=rng.randint(0, 6),
                )
            )
        rng.shuffle(entries)
        tables.append(LatencyTable(entries, provenance=table.provenance))
    states = {}
    for entry in importance:
        states.setdefault((entry.start, entry.end), []).append(entry)
    for start, end, name, change in options:
        for entry in states.get((start, end), ()):
            if rng.random() < 0.85:
                loss = float(rng.randint(0, 2)) if rng.random() < 0.5 else rng.uniform(-0.3, 2.0)
                importance.append(replace(entry, importance=entry.importance - loss, merged=name, change=change))
    rng.shuffle(importance)
    return replace(
        problem,
        latencies=tuple(tables),
        importance=ImportanceTable(importance, provenance=problem.importance.provenance),
    )


@dataclass(frozen=True, kw_only=True)
class Found:
    """One solution by enumeration."""

    act_pos: frozenset[int]
    merge_pos: frozenset[int]
    changed: frozenset[tuple[int, str]]
    importance: float
    latencies_ms: tuple[float, ...]


def enumerate_drop_solutions(problem: Problem) -> list[Found]:
    """Return every solution that keeps to the limits."""
    table, limits = problem.latencies[0], problem.limits
    singles = [e.importance for e in problem.importance.entries if e.end == e.start + 1 and e.change is None]
    shift = problem.alpha * sum(singles) / len(singles) if problem.alpha else 0.0
    deviations = 0.0 if problem.risk is None else NormalDist().inv_cdf(1.0 - problem.risk)
    by_start: dict[int, list[ImportanceEntry]] = {}
    for entry in problem.importance.entries:
        by_start.setdefault(entry.start, []).append(entry)
    measured = {
        device: {(e.start, e.end, _lost(e)): e for e in each.entries} for device, each in enumerate(problem.latencies)
    }
    whole = whole_costs(problem)
    worth_it = {
        (start, end, lost)
        for start, end, lost in measured[0]
        if is_worth_it(
            problem,
            (start, end),
            costs_of(problem, [each[start, end, lost] for each in measured.values()]),
            whole,
            drops=bool(lost),
        )
    }
    parts = [list(_chain_solutions(problem, chain, by_start, worth_it)) for chain in table.chains]
    found = []
    for chosen in product(*parts):
        keys = [key for part in chosen for key in part[2]]
        entries = [measured[0][key] for key in keys]
        sizes = [
            (limits.max_params, sum(_size(e, "params") for e in entries)),
            (limits.max_macs, sum(_size(e, "macs") for e in entries)),
            (limits.max_merged, sum(e.end - e.start > 1 and e.merged != "identity" for e in entries)),
        ]
        if any(most is not None and size > most for most, size in sizes):
            continue
        latencies = []
        for device, each in enumerate(problem.latencies):
            alike = [measured[device][key] for key in keys]
            sum_ms = math.fsum(e.latency_ms for e in alike)
            sum_ms += deviations * math.sqrt(math.fsum(e.spread_ms**2 for e in alike))
            latencies.append(each.provenance.fixed_ms + each.provenance.scale * sum_ms)
        rows = [row for part in chosen for row in part[0]]
        found.append(
            Found(
                act_pos=frozenset(row.end for row in rows if row.end_act),
                merge_pos=frozenset(key[1] for key in keys),
                changed=frozenset(mark for row in rows for mark in _lost(row)),
                importance=math.fsum(row.importance - shift for row in rows),
                latencies_ms=tuple(latencies),
            )
        )
    return found


def compare_drops(seed: int, *, most_layers: int = 5, others: Sequence[str] = ()) -> tuple[list[str], bool, bool]:
    """Return what differs for ``random_drop_problem(seed)``, if it has an answer, and if that changes layers."""
    problem = random_drop_problem(seed, most_layers=most_layers, others=others)
    every = enumerate_drop_solutions(problem)
    fits = [
        each
        for each in every
        if all(ms <= budget for ms, budget in zip(each.latencies_ms, problem.budgets_ms, strict=True))
    ]
    expected = max(fits, key=lambda each: (each.importance, -each.latencies_ms[0]), default=None)
    try:
        frontier = solve_frontier(
            problem.latencies, problem.importance, problem.alpha, limits=problem.limits, risk=problem.risk
        )
        found = frontier.at(budget_ms=problem.budgets_ms)
    except (InfeasibleBudgetError, MissingEntryError):
        lines = [] if expected is None else [f"seed {seed}: no answer, enumeration {expected}"]
        return lines, expected is not None, False
    if expected is None:
        return [f"seed {seed}: {found}, enumeration none"], False, False
    lines = []
    if abs((found.importance or 0.0) - expected.importance) > TOLERANCE:
        lines.append(f"seed {seed}: importance {found.importance}, enumeration {expected.importance}")
    layers = {index for start, end in problem.latencies[0].chains for index in range(start + 1, end + 1)}
    dropped = frozenset() if found.kept_layers is None else layers - set(found.kept_layers)
    changed = {(index, "drop") for index in dropped}
    changed |= {(index, change.word) for change in found.changes for index in change.layers or ()}
    same = [
        each
        for each in every
        if (each.act_pos, each.merge_pos, each.changed)
        == (frozenset(found.act_pos), frozenset(found.merge_pos), changed)
    ]
    if not any(abs(each.importance - (found.importance or 0.0)) <= TOLERANCE for each in same):
        lines.append(f"seed {seed}: {found} is no solution of the enumeration")
    elif any(ms > budget for ms, budget in zip(same[0].latencies_ms, problem.budgets_ms, strict=True)):
        lines.append(f"seed {seed}: over budget, {same[0].latencies_ms} > {problem.budgets_ms}")
    if abs(problem.latencies[0].predict_ms(found) - (found.predicted_ms or 0.0)) > TOLERANCE:
        lines.append(f"seed {seed}: says {found.predicted_ms} ms, the table {problem.latencies[0].predict_ms(found)}")
    lines += _frontier_differences(seed, every, frontier.latencies_ms.tolist(), frontier.importances.tolist())
    return lines, True, bool(changed)


def _chain_solutions(
    problem: Problem,
    chain: tuple[int, int],
    by_start: dict[int, list[ImportanceEntry]],
    usable: set[tuple[int, int, Marks]],
) -> Iterator[tuple[list[ImportanceEntry], None, list[tuple[int, int, Marks]]]]:
    """Yield (rows, None, segments with what is changed of them) of one chain."""
    limits = problem.limits
    bare_slots = may_be_bare(problem)

    def sequences(position: int, state: int) -> Iterator[list[ImportanceEntry]]:
        if position == chain[1]:
            yield []
        for row in by_start.get(position, ()):
            if row.start_act == state and row.end <= chain[1]:
                for rest in sequences(row.end, row.end_act):
                    yield [row, *rest]

    for rows in sequences(chain[0], 1):
        acts = {row.end for row in rows if row.end_act}
        if any(chain[0] < p <= chain[1] and p not in acts for p in limits.keep_activations):
            continue
        if acts & limits.drop_activations:
            continue
        lost = {mark for row in rows for mark in _lost(row)}
        bare = {one.end for one, other in pairwise(rows) if not one.end_act and (_lost(one) or _lost(other))}
        needed = acts | bare | {chain[1]}
        free = [
            position for position in range(chain[0] + 1, chain[1]) if position not in needed and position in bare_slots
        ]
        for count in range(len(free) + 1):
            for extra in combinations(free, count):
                stops = [chain[0], *sorted(needed | set(extra))]
                keys = [
                    (start, end, tuple(mark for mark in sorted(lost) if start < mark[0] <= end))
                    for start, end in pairwise(stops)
                ]
                if all(key in usable and not _is_forbidden(key, limits.never_merge) for key in keys):
                    yield rows, None, keys


def _is_forbidden(key: tuple[int, int, Marks], never_merge: frozenset[int]) -> bool:
    start, end, lost = key
    return (end - start > 1 or bool(lost)) and any(start < layer <= end for layer in never_merge)


def _lost(entry: ImportanceEntry | LatencyEntry) -> Marks:
    return () if entry.change is None else tuple((index, entry.change.word) for index in entry.change.layers or ())


def _size(entry: LatencyEntry, name: str) -> int:
    return 0 if entry.merged == "identity" else int(getattr(entry, name))


def _frontier_differences(
    seed: int, every: list[Found], latencies_ms: list[list[float]], importances: list[float]
) -> list[str]:
    expected = [(*each.latencies_ms, -each.importance) for each in every]
    found = [(*ms, -importance) for ms, importance in zip(latencies_ms, importances, strict=True)]

    def covered(point: tuple[float, ...], others: list[tuple[float, ...]]) -> bool:
        return any(all(x <= y + TOLERANCE for x, y in zip(other, point, strict=True)) for other in others)

    if all(covered(point, found) for point in expected) and all(covered(point, expected) for point in found):
        return []
    return [f"seed {seed}: a frontier of {len(found)} points is not that of the enumeration"]
