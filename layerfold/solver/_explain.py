"""Why a solution looks as it does: what each stretch saves and costs, and what the next better point changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from layerfold.arguments import checked, shown, whole
from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.solver._frontier import Frontier
from layerfold.solver._solution import Solution
from layerfold.tables.levers import DROP, Change, lever_of


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The layers between two kept activations (or a chain's ends).

    Attributes:
        start, end: positions.
        segments: (start, end) of the convs that remain.
        change: what a lever does to its layers; None for nothing.
        original_ms: sum of the entries of its single layers, times the scale.
        latency_ms: sum of the entries of its segments, times the scale.
        importance: its importance in points.
    """

    start: int
    end: int
    segments: tuple[tuple[int, int], ...]
    original_ms: float
    latency_ms: float
    importance: float
    change: Change | None = None

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers that do not stay."""
        return self.change.layers or () if self.change is not None and self.change.lever == DROP else ()

    @property
    def saved_ms(self) -> float:
        return self.original_ms - self.latency_ms


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What :func:`layerfold.explain_point` finds.

    Attributes:
        solution: the point.
        stretches: in order of position.
        next_solution: the next point of higher importance, or None at the frontier's end.
    """

    solution: Solution
    stretches: tuple[Stretch, ...]
    next_solution: Solution | None

    def to_json(self) -> JsonObject:
        """Return the explanation, ready for ``json.dumps``."""
        return {
            "stretches": [
                {
                    "start": each.start,
                    "end": each.end,
                    "segments": [list(segment) for segment in each.segments],
                    "original_ms": None if math.isnan(each.original_ms) else each.original_ms,
                    "latency_ms": each.latency_ms,
                    "importance": each.importance,
                    "dropped": list(each.dropped),
                }
                for each in self.stretches
            ],
            "next": None if self.next_solution is None else self.next_solution.to_json(),
        }

    def lines(self) -> list[str]:
        """Return the explanation as lines of text."""
        rows = [("layers", "become", "alone ms", "now ms", "saved ms", "importance")]
        single_count, single_ms, single_importance = 0, 0.0, 0.0
        for each in self.stretches:
            if each.end == each.start + 1 and each.change is None:
                single_count += 1
                single_ms += each.latency_ms
                single_importance += each.importance
                continue
            parts = " ".join(_layers(start, end) for start, end in each.segments)
            if len(each.segments) == 1:
                parts = "one conv" if len(each.dropped) < each.end - each.start else "nothing"
            if each.change is not None and parts != "nothing":
                parts += f" {lever_of(each.change.word).phrase(each.change)}"
            rows.append(
                (
                    _layers(each.start, each.end),
                    parts,
                    f"{each.original_ms:.4g}",
                    f"{each.latency_ms:.4g}",
                    f"{each.saved_ms:+.4g}",
                    f"{each.importance:+.4g}",
                )
            )
        rows.append(
            (
                f"{single_count} single",
                "unchanged",
                f"{single_ms:.4g}",
                f"{single_ms:.4g}",
                "+0",
                f"{single_importance:+.4g}",
            )
        )
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        found = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return [*found, self._next_line()]

    def _next_line(self) -> str:
        if self.next_solution is None:
            return "next better point: none, this is the best importance that can be reached"
        here, there = self.solution, self.next_solution
        latency = (there.predicted_ms or 0.0) - (here.predicted_ms or 0.0)
        importance = (there.importance or 0.0) - (here.importance or 0.0)
        # All layers lie in some stretch; those that stay here:
        kept = {i for each in self.stretches for i in range(each.start + 1, each.end + 1)} - _lost(self.stretches)
        changes = [
            f"{sign}{name} {','.join(map(str, sorted(positions)))}"
            for name, sign, positions in (
                ("activation", "+", set(there.act_pos) - set(here.act_pos)),
                ("activation", "-", set(here.act_pos) - set(there.act_pos)),
                ("break", "+", set(there.merge_pos) - set(here.merge_pos)),
                ("break", "-", set(here.merge_pos) - set(there.merge_pos)),
                ("layer", "+", _lost(self.stretches) if there.kept_layers is None else set(there.kept_layers) - kept),
                ("layer", "-", kept - set(kept if there.kept_layers is None else there.kept_layers)),
            )
            if positions
        ]
        for sign, more, less in (("+", there, here), ("-", here, there)):
            new = [each for each in more.changes if each not in less.changes]
            changes += [f"{sign}{word} of {','.join(map(str, layers or ()))}" for word, layers in new]
        return f"next better point: {latency:+.4g} ms for {importance:+.4g} points: {'; '.join(changes) or 'none'}"


@checked
def explain_point(frontier: Frontier, index: int) -> Explanation:
    """Explain point ``index`` of a frontier.

    The next better point is the fastest of those with a higher importance.

    Raises:
        UsageError: no such point.

    Example:
        >>> frontier = lf.solve_frontier(latency, importance)
        >>> for line in lf.explain_point(frontier, 1).lines():
        ...     print(line)
        layers    become     alone ms  now ms  saved ms  importance
        2-3       one conv          2     1.2      +0.8          -1
        1 single  unchanged         1       1        +0          +0
        next better point: +0.8 ms for +1 points: +activation 2; +break 2
    """
    if not 0 <= whole("index", index) < len(frontier):
        raise UsageError(f"index={shown(index)}: expected a point of the frontier, 0 to {len(frontier) - 1}")
    latency = frontier.latency
    scale = latency.provenance.scale
    stretches = []
    for option in frontier.options_of(index):
        segments = tuple(pairwise(option.plan.breaks))
        singles = [(position, position + 1) for position in range(option.start, option.end)]
        known = all(each in latency for each in singles)
        stretches.append(
            Stretch(
                start=option.start,
                end=option.end,
                segments=segments,
                original_ms=scale * latency.sum_ms(singles) if known else math.nan,
                latency_ms=scale * latency.sum_ms(option.plan.keys),
                importance=option.importance,
                change=option.plan.change,
            )
        )
    better = [each for each in range(len(frontier)) if frontier.importances[each] > frontier.importances[index]]
    following = min(better, key=lambda each: (frontier.latencies_ms[each, 0], each), default=None)
    return Explanation(
        solution=frontier[index],
        stretches=tuple(stretches),
        next_solution=None if following is None else frontier[following],
    )


def _lost(stretches: Iterable[Stretch]) -> set[int]:
    return {index for each in stretches for index in each.dropped}


def _layers(start: int, end: int) -> str:
    return str(end) if end == start + 1 else f"{start + 1}-{end}"
