"""A plan, and what measuring it gave."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from layerfold.profiler.timing.ratio import MeasuredRatio
from layerfold.tables.levers import Change

_LEAST_DEVIATION = 5e-4
_SLOWED_DEVIATION = 0.03
_WIDTH_IN_DEVIATIONS = 2 * 1.96


class Plan(NamedTuple):
    """Plan of a merged network, as far as it decides its latency.

    Attributes:
        act_pos, merge_pos: as of a solution, chain ends included.
        dropped: layers that are left out, rising.
        changes: what other levers change, by position.
    """

    act_pos: tuple[int, ...]
    merge_pos: tuple[int, ...]
    dropped: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """A plan's latency relative to the original network's.

    Attributes:
        act_pos, merge_pos, dropped, changes: the plan, chain ends included.
        ratio, low, high: latency / original latency, median over rounds, with its 95 % interval.
        rounds, contended: rounds used, and set aside because something else slowed the machine.
        is_slowed: whether rounds had to be used in which a neighbour slowed the processor.
    """

    act_pos: tuple[int, ...]
    merge_pos: tuple[int, ...]
    ratio: float
    low: float
    high: float
    rounds: int = 0
    contended: int = 0
    dropped: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()
    is_slowed: bool = False

    @classmethod
    def of(cls, plan: Plan, found: MeasuredRatio) -> MeasuredPlan:
        """Return a plan with the ratio that was measured of it: settled, where no neighbour slowed the processor."""
        return cls(
            **plan._asdict(),
            ratio=found.ratio.estimate,
            low=found.ratio.low,
            high=found.ratio.high,
            rounds=found.rounds,
            contended=found.contended,
            is_slowed=not found.is_settled,
        )

    @property
    def plan(self) -> Plan:
        return Plan(self.act_pos, self.merge_pos, self.dropped, self.changes)

    @property
    def deviation(self) -> float:
        """Standard deviation of ``ratio`` that the interval amounts to, and what a neighbour does to ratios."""
        spread = max((self.high - self.low) / _WIDTH_IN_DEVIATIONS, _LEAST_DEVIATION)
        return math.hypot(spread, _SLOWED_DEVIATION * self.ratio) if self.is_slowed else spread


def pooled(readings: Sequence[MeasuredPlan]) -> MeasuredPlan:
    """Return one plan's readings as one: their mean, weighted by precision."""
    weights = [each.deviation**-2 for each in readings]
    ratio = sum(w * each.ratio for w, each in zip(weights, readings, strict=True)) / sum(weights)
    half = 1.96 / math.sqrt(sum(weights))
    return replace(
        readings[0],
        ratio=ratio,
        low=ratio - half,
        high=ratio + half,
        rounds=sum(each.rounds for each in readings),
        contended=sum(each.contended for each in readings),
        is_slowed=any(each.is_slowed for each in readings),
    )


def pooled_plans(measured: Iterable[MeasuredPlan]) -> list[MeasuredPlan]:
    """Return one reading for each set of segments: several are averaged by precision."""
    groups: dict[tuple[object, ...], list[MeasuredPlan]] = {}
    for plan in measured:
        groups.setdefault(plan.plan[1:], []).append(plan)
    return [pooled(each) if len(each) > 1 else replace(each[0]) for each in groups.values()]
