"""Problems solved by hand: each small enough to check on paper, each with its optimum and the reason."""

from __future__ import annotations

from dataclasses import dataclass

from layerfold.solver import Limits
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance
from tests.oracles.instances import Problem

Segment = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A problem and its answer; ``importance`` None means that nothing fits."""

    name: str
    why: str
    problem: Problem
    importance: float | None
    act_pos: tuple[int, ...] = ()
    merge_pos: tuple[int, ...] = ()
    latencies_ms: tuple[float, ...] = ()


def _problem(
    latencies: dict[Segment, float] | list[dict[Segment, float]],
    importances: dict[Segment | tuple[int, int, int, int], float],
    budgets_ms: float | tuple[float, ...],
    *,
    spreads: dict[Segment, float] | None = None,
    sizes: dict[Segment, int] | None = None,
    limits: Limits | None = None,
    risk: float | None = None,
    alpha: float = 0.0,
    **provenance: object,
) -> Problem:
    tables = [
        LatencyTable(
            [
                LatencyEntry(
                    start=i,
                    end=j,
                    latency_ms=ms,
                    spread_ms=(spreads or {}).get((i, j), 0.0),
                    params=(sizes or {}).get((i, j)),
                    macs=(sizes or {}).get((i, j)),
                )
                for (i, j), ms in device.items()
            ],
            provenance=Provenance(**provenance),  # type: ignore[arg-type]
        )
        for device in (latencies if isinstance(latencies, list) else [latencies])
    ]
    entries = [
        ImportanceEntry(
            start=key[0],
            end=key[1],
            start_act=key[2] if len(key) == 4 else 1,
            end_act=key[3] if len(key) == 4 else 1,
            importance=value,
        )
        for key, value in importances.items()
    ]
    return Problem(
        latencies=tuple(tables),
        importance=ImportanceTable(entries),
        limits=limits or Limits(),
        risk=risk,
        alpha=alpha,
        budgets_ms=budgets_ms if isinstance(budgets_ms, tuple) else (budgets_ms,),
    )


_THREE = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 2): 1.2, (1, 3): 1.4}
_THREE_IMP = {(0, 1): 0.0, (1, 2): 0.0, (2, 3): 0.0, (0, 2): -1.0, (1, 3): -0.5}
_FOUR = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (3, 4): 1.0, (0, 3): 1.0, (1, 4): 2.5, (0, 4): 9.0}
_FOUR_IMP: dict[Segment | tuple[int, int, int, int], float] = {
    (0, 1): 0.0,
    (1, 2): 0.0,
    (2, 3): 0.0,
    (3, 4): 0.0,
    (0, 3): -2.0,
    (1, 4): -2.0,
    (0, 4): -1.0,
}

BANK = (
    Solved(
        name="one layer",
        why="nothing to choose",
        problem=_problem({(0, 1): 2.0}, {(0, 1): -0.25}, 2.0),
        importance=-0.25,
        act_pos=(1,),
        merge_pos=(1,),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="one layer, too slow",
        why="2.0 ms is the only latency",
        problem=_problem({(0, 1): 2.0}, {(0, 1): 0.0}, 1.999),
        importance=None,
    ),
    Solved(
        name="budget met exactly",
        why="3.0 ms is within 3.0 ms",
        problem=_problem(_THREE, _THREE_IMP, 3.0),
        importance=0.0,
        act_pos=(1, 2, 3),
        merge_pos=(1, 2, 3),
        latencies_ms=(3.0,),
    ),
    Solved(
        name="cheaper loss",
        why="both merges fit 2.5 ms; merging layers 2-3 costs 0.5 points, layers 1-2 cost 1",
        problem=_problem(_THREE, _THREE_IMP, 2.5),
        importance=-0.5,
        act_pos=(1, 3),
        merge_pos=(1, 3),
        latencies_ms=(2.4,),
    ),
    Solved(
        name="forced into the greater loss",
        why="2.3 ms leaves only the merge of layers 1-2 at 2.2 ms",
        problem=_problem(_THREE, _THREE_IMP, 2.3),
        importance=-1.0,
        act_pos=(2, 3),
        merge_pos=(2, 3),
        latencies_ms=(2.2,),
    ),
    Solved(
        name="tie goes to the faster",
        why="both merges cost 1 point, the first takes 1.2 ms",
        problem=_problem(_THREE, {**_THREE_IMP, (1, 3): -1.0}, 2.5),
        importance=-1.0,
        act_pos=(2, 3),
        merge_pos=(2, 3),
        latencies_ms=(2.2,),
    ),
    Solved(
        name="activation stays where its removal frees no merge",
        why="dropping activation 1 is said to gain 0.3 points, but nothing merges over it: by the rule it stays",
        problem=_problem({(0, 1): 1.0, (1, 2): 1.0}, {(0, 1): -1.0, (1, 2): -1.0, (0, 2): 0.3}, 9.0),
        importance=-2.0,
        act_pos=(1, 2),
        merge_pos=(1, 2),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="activation removed, not merged, as published",
        why="where that is allowed, 0.3 points beat -2",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 5.0},
            {(0, 1): -1.0, (1, 2): -1.0, (0, 2): 0.3},
            9.0,
            limits=Limits(allow_bare_stops=True),
        ),
        importance=0.3,
        act_pos=(2,),
        merge_pos=(1, 2),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="merge that is not faster is no option",
        why="0.3 points for merging, which takes longer than two convs",
        problem=_problem({(0, 1): 1.0, (1, 2): 1.0, (0, 2): 5.0}, {(0, 1): -1.0, (1, 2): -1.0, (0, 2): 0.3}, 9.0),
        importance=-2.0,
        act_pos=(1, 2),
        merge_pos=(1, 2),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="merge that is faster on one device is an option",
        why="slower on the first device, faster on the second",
        problem=_problem(
            [{(0, 1): 1.0, (1, 2): 1.0, (0, 2): 5.0}, {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.9}],
            {(0, 1): -1.0, (1, 2): -1.0, (0, 2): 0.3},
            (9.0, 9.0),
        ),
        importance=0.3,
        act_pos=(2,),
        merge_pos=(2,),
        latencies_ms=(5.0, 1.9),
    ),
    Solved(
        name="stage 1 stops where an activation stays",
        why="0-3 and 3-4 is the fastest cut; the -1 of 0-4 is for a network without activation 3, which stays",
        problem=_problem(_FOUR, _FOUR_IMP, 2.2),
        importance=-2.0,
        act_pos=(3, 4),
        merge_pos=(3, 4),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="stage 1 merges across activations that went, as published",
        why="without activations 1-3, 0-3 and 3-4 is the fastest cut",
        problem=_problem(_FOUR, _FOUR_IMP, 2.2, limits=Limits(allow_bare_stops=True)),
        importance=-1.0,
        act_pos=(4,),
        merge_pos=(3, 4),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="stage 1 stops in an empty slot",
        why="slot 3 is empty in the original: 0-4 without activations may be cut there, for -1 point",
        problem=_problem(_FOUR, {**_FOUR_IMP, (0, 3, 1, 0): -2.0, (3, 4, 0, 1): 0.0}, 2.2),
        importance=-1.0,
        act_pos=(4,),
        merge_pos=(3, 4),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="truncation would overrun",
        why="three terms of 0.99 ms cut to whole ms look like 0; 2.9 ms fits two only",
        problem=_problem(
            {(0, 1): 0.99, (1, 2): 0.99, (2, 3): 0.99, (0, 2): 1.0},
            {(0, 1): 0.0, (1, 2): 0.0, (2, 3): 0.0, (0, 2): -1.0},
            2.9,
        ),
        importance=-1.0,
        act_pos=(2, 3),
        merge_pos=(2, 3),
        latencies_ms=(1.99,),
    ),
    Solved(
        name="importance extended over an empty slot",
        why="0-2 has no importance of its own; (0,1) and (1,2) with slot 1 left empty add up to -0.4, merged in 1.0 ms",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0},
            {(0, 1, 1, 1): 0.0, (1, 2, 1, 1): 0.0, (0, 1, 1, 0): -0.1, (1, 2, 0, 1): -0.3, (0, 2, 1, 1): -5.0},
            1.5,
        ),
        importance=-0.4,
        act_pos=(2,),
        merge_pos=(2,),
        latencies_ms=(1.0,),
    ),
    Solved(
        name="empty slot filled",
        why="an activation in empty slot 1 is worth 0.2 points and costs no time",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0},
            {(0, 1, 1, 1): 0.1, (0, 1, 1, 0): 0.0, (1, 2, 1, 1): 0.1, (1, 2, 0, 1): 0.0},
            2.0,
        ),
        importance=0.2,
        act_pos=(1, 2),
        merge_pos=(1, 2),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="chain that ends without activation",
        why="the end's state is 0, so A is empty and S still holds the end",
        problem=_problem({(0, 1): 1.0}, {(0, 1, 1, 0): -0.5}, 1.0),
        importance=-0.5,
        act_pos=(),
        merge_pos=(1,),
        latencies_ms=(1.0,),
    ),
    Solved(
        name="two chains share a position",
        why="position 2 ends one chain and starts the next; nothing merges over it",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0, (2, 3): 1.0, (3, 4): 1.0, (2, 4): 1.0},
            {(0, 1): 0.0, (1, 2): 0.0, (0, 2): -3.0, (2, 3): 0.0, (3, 4): 0.0, (2, 4): -2.0},
            3.0,
            chains=((0, 2), (2, 4)),
        ),
        importance=-2.0,
        act_pos=(1, 2, 4),
        merge_pos=(1, 2, 4),
        latencies_ms=(3.0,),
    ),
    Solved(
        name="fixed part and scale",
        why="0.5 + 2 * sum: the sum may be 2.25 ms, so only the merge of layers 1-2 fits",
        problem=_problem(_THREE, _THREE_IMP, 5.0, fixed_ms=0.5, scale=2.0),
        importance=-1.0,
        act_pos=(2, 3),
        merge_pos=(2, 3),
        latencies_ms=(4.9,),
    ),
    Solved(
        name="fixed part alone is over budget",
        why="0.5 ms outside the chains",
        problem=_problem({(0, 1): 1.0}, {(0, 1): 0.0}, 0.4, fixed_ms=0.5),
        importance=None,
    ),
    Solved(
        name="two devices",
        why="each merge is fast on one device only; within both budgets neither is needed but one must be",
        problem=_problem(
            [_THREE, {**_THREE, (0, 2): 2.5, (1, 3): 1.9}],
            _THREE_IMP,
            (2.5, 3.0),
        ),
        importance=-0.5,
        act_pos=(1, 3),
        merge_pos=(1, 3),
        latencies_ms=(2.4, 2.9),
    ),
    Solved(
        name="two devices that no plan serves",
        why="device 1 needs a merge, which device 2 cannot afford",
        problem=_problem([_THREE, {**_THREE, (0, 2): 2.5, (1, 3): 2.5}], _THREE_IMP, (2.5, 3.1)),
        importance=None,
    ),
    Solved(
        name="slower cut that saves parameters",
        why="merging whole is faster but has 100 parameters; in parts 2 + 2",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0},
            # Slot 1 is empty: what has an activation there would keep it.
            {(0, 1, 1, 0): 0.0, (1, 2, 0, 1): 0.0, (0, 2): 1.0},
            9.0,
            sizes={(0, 1): 2, (1, 2): 2, (0, 2): 100},
            limits=Limits(max_params=4),
        ),
        importance=1.0,
        act_pos=(2,),
        merge_pos=(1, 2),
        latencies_ms=(2.0,),
    ),
    Solved(
        name="cap on merged segments",
        why="two merges would be best, one is allowed: the one that gains more",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0, (2, 3): 1.0, (3, 4): 1.0, (2, 4): 1.0},
            {(0, 1): 0.0, (1, 2): 0.0, (0, 2): -1.0, (2, 3): 0.0, (3, 4): 0.0, (2, 4): -2.0},
            3.0,
            limits=Limits(max_merged=1),
        ),
        importance=-1.0,
        act_pos=(2, 3, 4),
        merge_pos=(2, 3, 4),
        latencies_ms=(3.0,),
    ),
    Solved(
        name="cap on merged segments, out of reach",
        why="2.5 ms needs two merges, one is allowed",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0, (2, 3): 1.0, (3, 4): 1.0, (2, 4): 1.0},
            {(0, 1): 0.0, (1, 2): 0.0, (0, 2): -1.0, (2, 3): 0.0, (3, 4): 0.0, (2, 4): -2.0},
            2.5,
            limits=Limits(max_merged=1),
        ),
        importance=None,
    ),
    Solved(
        name="kept activation",
        why="activation 2 must stay, so layers 2-3 cannot merge although that is cheaper",
        problem=_problem(_THREE, _THREE_IMP, 2.5, limits=Limits(keep_activations=frozenset([2]))),
        importance=-1.0,
        act_pos=(2, 3),
        merge_pos=(2, 3),
        latencies_ms=(2.2,),
    ),
    Solved(
        name="layer never merged",
        why="layer 2 stays alone, so neither merge is possible",
        problem=_problem(_THREE, _THREE_IMP, 2.9, limits=Limits(never_merge=frozenset([2]))),
        importance=None,
    ),
    Solved(
        name="risk avoids the uncertain entry",
        why="at 5 % (1.645 deviations) the merge of layers 2-3 reaches 2.4 + 0.33 ms > 2.5; the other is certain",
        problem=_problem(_THREE, _THREE_IMP, 2.5, spreads={(1, 3): 0.2}, risk=0.05),
        importance=-1.0,
        act_pos=(2, 3),
        merge_pos=(2, 3),
        latencies_ms=(2.2,),
    ),
    Solved(
        name="risk shrinks in sums",
        why="two independent 0.1 ms add up to 0.141, not 0.2: 2 + 1.645 * 0.141 = 2.2326 fits",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.5},
            {(0, 1): 0.0, (1, 2): 0.0, (0, 2): -1.0},
            2.24,
            spreads={(0, 1): 0.1, (1, 2): 0.1},
            risk=0.05,
        ),
        importance=0.0,
        act_pos=(1, 2),
        merge_pos=(1, 2),
        latencies_ms=(2.232617,),
    ),
    Solved(
        name="alpha favours many small segments",
        why="-2 for two singles, -1.5 merged; less the mean of -1 a term, 0 and -0.5",
        problem=_problem(
            {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 1.0},
            {(0, 1): -1.0, (1, 2): -1.0, (0, 2): -1.5},
            2.0,
            alpha=1.0,
        ),
        importance=0.0,
        act_pos=(1, 2),
        merge_pos=(1, 2),
        latencies_ms=(2.0,),
    ),
)
