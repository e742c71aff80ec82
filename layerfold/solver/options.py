"""What the solver chooses from: options, each a way to realise a stretch of a chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from layerfold.tables.kernel import SegmentKey
from layerfold.tables.levers import Change

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class StretchPlan:
    """What to do in one stretch of a chain.

    Attributes:
        breaks: the stretch's start, where merging stops inside it, and its end.
        change: what a lever does to its layers; None for nothing.
        kernels: for each part between two breaks the kernel that it merges into, if layers are changed there, else
            empty; none at all where nothing is changed.
    """

    breaks: tuple[int, ...]
    change: Change | None = None
    kernels: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[SegmentKey, ...]:
        """What latency tables know the parts by."""
        kernels = self.kernels or ("",) * (len(self.breaks) - 1)
        return tuple(
            (start, end, kernel) if kernel else (start, end)
            for (start, end), kernel in zip(pairwise(self.breaks), kernels, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way from (start, start_act) to (end, end_act) with no activation in between.

    Attributes:
        start, end: positions, start < end.
        start_act, end_act: 1 if the slot there holds an activation, else 0.
        latency_ms: sum of the entries of the plan's segments.
        importance: in points, higher is better.
        plan: what to do there.
        more_costs: further costs, in the order of the problem's limits (a second device, parameters, ...).

    Example:
        >>> from layerfold.solver.options import StretchPlan
        >>> plan = StretchPlan(breaks=(0, 1, 3))
        >>> option = lf.Option(start=0, start_act=1, end=3, end_act=1, latency_ms=2.2, importance=-1.0, plan=plan)
        >>> option.plan.keys
        ((0, 1), (1, 3))
    """

    start: int
    start_act: int
    end: int
    end_act: int
    latency_ms: float
    importance: float
    plan: StretchPlan
    more_costs: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """The options of one chain as arrays, by rising (to_state, from_state, first cost).

    State number = 2 * (position - chain start) + activation.

    Attributes:
        chain: (start, end).
        from_state, to_state: [options].
        costs: [options, columns].
        importances: [options].
        plan_of: index of an option to its plan; plans are made only for what is chosen.
    """

    chain: tuple[int, int]
    from_state: Ints
    to_state: Ints
    costs: Floats
    importances: Floats
    plan_of: Callable[[int], StretchPlan] = field(repr=False)

    @property
    def num_states(self) -> int:
        return 2 * (self.chain[1] - self.chain[0] + 1)

    @property
    def end_states(self) -> tuple[int, int]:
        return self.num_states - 2, self.num_states - 1

    def option(self, index: int) -> Option:
        """Return option ``index`` as an object."""
        start, end = int(self.from_state[index]), int(self.to_state[index])
        latency_ms, *more = self.costs[index].tolist()
        return Option(
            start=self.chain[0] + start // 2,
            start_act=start % 2,
            end=self.chain[0] + end // 2,
            end_act=end % 2,
            latency_ms=latency_ms,
            importance=float(self.importances[index]),
            plan=self.plan_of(index),
            more_costs=tuple(more),
        )


def chain_options(
    *,
    chain: tuple[int, int],
    from_state: Ints,
    to_state: Ints,
    costs: Floats,
    importances: Floats,
    plan_of: Callable[[int], StretchPlan],
) -> ChainOptions:
    """Return options sorted as :class:`ChainOptions` wants them; ``plan_of`` takes indices in the order given."""
    order = np.lexsort((-importances, costs[:, 0], from_state, to_state))
    return ChainOptions(
        chain=chain,
        from_state=from_state[order],
        to_state=to_state[order],
        costs=costs[order],
        importances=importances[order],
        plan_of=lambda index: plan_of(int(order[index])),
    )
