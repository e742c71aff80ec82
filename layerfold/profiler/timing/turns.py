"""Time runners in turns with a reference, round by round, and set contended rounds aside.

On a shared machine a neighbour slows everything by a fifth for half a second at a time. A ratio within one short round
hardly feels that, unless the change falls inside the round. So rounds are short (one block per runner, in random
order), and a round that took longer as a whole than the quick ones is counted as contended and not used: what is judged
is the sum over all runners, so the choice favours none of them. Rounds in which the sentinel found the processor slowed
(:mod:`layerfold.profiler.timing.sentinel`) are not used either, unless there is nothing else when patience ends: if
every round is slow, every round is quick, and all are used. A block in which the system gave the processor to someone
else is run again.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerfold.profiler.timing.block_statistics import is_narrow
from layerfold.profiler.timing.blocks import refills_of, time_block, warm_up
from layerfold.profiler.timing.measurement import MeasurePolicy
from layerfold.profiler.timing.ratio import MeasuredRatio, Ratio
from layerfold.profiler.timing.sentinel import SENTINEL, Sentinel

_WARMUP_WINDOW = 2
_MOST_REFILLS = 3
_LONG_PASS_MS = 50.0
_QUICK_QUANTILE = 0.25
_QUICK_MARGIN = 1.06
_LEAST_KEPT, _LEAST_KEPT_LONG = 8, 5
_PATIENCE = 3.0
_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Times of rounds in turns.

    Attributes:
        ratios: of each runner but the first, latency / the first's, with its 95 % interval.
        values_ms: of each runner, its latency in every round used.
        contended: rounds set aside.
        runs: timed passes of each runner in the rounds used.
        is_settled: whether every interval reached its target.
        is_slowed: whether a neighbour slowed the processor for so long that its rounds had to be used.
    """

    ratios: tuple[Ratio, ...]
    values_ms: tuple[tuple[float, ...], ...]
    contended: int
    runs: tuple[int, ...]
    is_settled: bool
    is_slowed: bool = False

    @property
    def rounds(self) -> int:
        """Rounds used."""
        return len(self.values_ms[0])

    def measured_ratio(self, index: int, *, is_settled: bool) -> MeasuredRatio:
        """Return the ratio of runner ``index``, which is not the first, with the rounds behind it."""
        return MeasuredRatio(
            ratio=self.ratios[index - 1],
            rounds=self.rounds,
            contended=self.contended,
            runs=self.runs[index],
            is_settled=is_settled,
        )


def time_in_turns(
    runners: Sequence[Callable[[], object]],
    policy: MeasurePolicy,
    *,
    seed: int = 0,
    are_latencies_wanted: bool = False,
    is_patient: bool = False,
    between_rounds: Callable[[], None] = lambda: None,
    sentinel: Sentinel = SENTINEL,
) -> Turns:
    """Time runners against the first of them.

    Args:
        runners: functions that do one forward pass.
        policy: ``target`` of the intervals' half-widths; ``cap_s`` seconds a runner, up to three times that while
            contention leaves too few rounds; ``block_ms`` of timed passes per turn.
        seed: of the order in each round.
        are_latencies_wanted: go on until the latencies' intervals have reached the target too, not only the ratios'.
        is_patient: whether rounds that are slowed take nothing of ``cap_s`` away.
        between_rounds: called before each round, untimed: to look at the machine.
        sentinel: says whether the processor is slowed.
    """
    pass_ms = [
        warm_up(functools.partial(_block_ms, run, 0, 1), cap_s=policy.warmup_cap_s, window=_WARMUP_WINDOW)
        for run in runners
    ]
    # A long pass fills the caches many times over by itself, and is its own average over what the machine does.
    is_long = min(pass_ms) > _LONG_PASS_MS
    refills = [0 if is_long else refills_of(each, _MOST_REFILLS) for each in pass_ms]
    least = _LEAST_KEPT_LONG if is_long else _LEAST_KEPT
    repeats = [max(1, math.ceil(policy.block_ms / each)) for each in pass_ms]
    rng = random.Random(seed)
    order = list(range(len(runners)))
    rounds: list[list[float]] = []
    quiet: list[list[float]] = []
    cap_s = policy.cap_s * len(runners)
    began, quiet_s = time.perf_counter(), 0.0
    while True:
        round_began = time.perf_counter()
        between_rounds()
        last = order[-1]
        rng.shuffle(order)
        if order[0] == last and len(order) > 1:  # never twice running: it would find its weights in the caches
            order.append(order.pop(0))
        values = [0.0] * len(runners)
        is_slowed = sentinel.is_slowed()
        for index in order:
            values[index] = _block_ms(runners[index], refills[index], repeats[index])
            is_slowed |= sentinel.is_slowed()
        rounds.append(values)
        now = time.perf_counter()
        if not is_slowed:
            quiet.append(values)
            quiet_s += now - round_began
        spent_s = now - began
        if len(quiet) < least and spent_s < _PATIENCE * cap_s:
            continue
        has_quiet = len(quiet) >= least
        kept = quick_rounds(quiet if has_quiet else rounds)
        ratios = [Ratio.of([values[index] / values[0] for values in kept]) for index in range(1, len(runners))]
        is_settled = len(kept) >= least and all(each.half_width < policy.target for each in ratios)
        columns = tuple(zip(*kept, strict=True))
        if are_latencies_wanted:
            is_settled = is_settled and all(is_narrow(column, policy.target) for column in columns)
        used_s = quiet_s if is_patient else spent_s
        is_over = (used_s > cap_s and len(kept) >= least) or spent_s > _PATIENCE * cap_s
        if is_settled or is_over:
            return Turns(
                ratios=tuple(ratios),
                values_ms=columns,
                contended=len(rounds) - len(kept),
                runs=tuple(len(kept) * each for each in repeats),
                is_settled=is_settled,
                is_slowed=not has_quiet,
            )


def quick_rounds(rounds: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the rounds that took, summed over runners, no longer than the quickest quarter and a margin."""
    totals = [sum(values) for values in rounds]
    limit = _QUICK_MARGIN * sorted(totals)[int(_QUICK_QUANTILE * (len(totals) - 1))]
    return [values for values, total in zip(rounds, totals, strict=True) if total <= limit]


def _block_ms(run: Callable[[], object], refills: int, repeats: int) -> float:
    """Return the mean time of a pass; of a block that was interrupted each time, the least one."""
    least_ms = math.inf
    for _ in range(1 + _RETRIES):
        block = time_block(run, refills=refills, passes=repeats)
        least_ms = min(least_ms, block.pass_ms)
        if not block.is_interrupted:
            break
    return least_ms
