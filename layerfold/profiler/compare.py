"""Compare runners so that drift cancels: ABBA order, and an interval on the paired ratio.

In one round each runner is timed once forwards and once backwards (A B C C B A), so that a linear drift adds
the same to all of them. The ratio of a round is formed within the round, before any median is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from layerfold.errors import UsageError
from layerfold.profiler.machine.conditions import Conditions, Watch
from layerfold.profiler.timing.block_statistics import is_narrow
from layerfold.profiler.timing.measure import TimedRunner
from layerfold.profiler.timing.measurement import Measurement, MeasurePolicy, summarise_blocks
from layerfold.profiler.timing.ratio import Ratio


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runners measured against each other.

    Attributes:
        measurements: by name, in the order given; values are per round.
        ratios: by name, latency divided by that of the first (exactly 1 for the first itself).
        conditions: what was seen of the machine meanwhile, with warnings.
    """

    measurements: dict[str, Measurement]
    ratios: dict[str, Ratio]
    conditions: Conditions


def compare_runners(
    runners: Mapping[str, Callable[[], object]],
    policy: MeasurePolicy | None = None,
    *,
    min_rounds: int = 20,
) -> Comparison:
    """Measure runners against the first of them, interleaved in ABBA order.

    Stops when every median and every ratio has reached the policy's target, or when each runner has had
    ``cap_s`` seconds. A round in which the system took the processor away is counted as disturbed and not used.

    Args:
        runners: name -> function that does one forward pass; the first is the reference.
        policy: when to stop; ``min_blocks`` is replaced by ``min_rounds``.
        min_rounds: least number of rounds.
    """
    if not runners:
        raise UsageError("runners is empty; give at least one to measure")
    policy = policy or MeasurePolicy()
    timed = {name: TimedRunner(run, policy) for name, run in runners.items()}
    for runner in timed.values():
        runner.warm_up()
    names = list(timed)
    reference = names[0]
    values_ms: dict[str, list[float]] = {name: [] for name in names}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    deadline = time.perf_counter() + policy.cap_s * len(names)
    next_check = min_rounds
    rounds_begun = 0
    narrow: dict[str, bool] = dict.fromkeys(names, False)
    watch = Watch()
    while True:
        watch.sample()
        turn = rounds_begun % len(names)  # the ends of a round run twice running: each name takes them in turn
        rounds_begun += 1
        order = names[turn:] + names[:turn]
        round_ms = dict.fromkeys(names, 0.0)
        is_disturbed = False
        for name in (*order, *order[::-1]):
            is_disturbed |= timed[name].block_ms() is None
            round_ms[name] += timed[name].last_ms / 2
        is_late = time.perf_counter() > deadline
        if is_late:
            for runner in timed.values():
                runner.retry_s = 0.0
        elif is_disturbed:
            continue
        for name in names:
            values_ms[name].append(round_ms[name])
            ratios[name].append(round_ms[name] / round_ms[reference])
        rounds = len(values_ms[reference])
        if rounds >= next_check:
            narrow = {name: is_narrow(values_ms[name], policy.target) for name in names}
            if all(narrow.values()) and all(is_narrow(ratios[name], policy.target) for name in names[1:]):
                break
            next_check = rounds + max(rounds // 16, 1)
        if rounds >= 6 and is_late:
            break
    measured = {
        name: summarise_blocks(
            values_ms[name],
            runs=2 * rounds * timed[name].runs_per_block,
            is_settled=narrow[name],
            disturbed=timed[name].disturbed,
            disturbed_ms=timed[name].disturbed_ms,
        )
        for name in names
    }
    intervals = {name: Ratio.of(ratios[name]) for name in names}
    return Comparison(measurements=measured, ratios=intervals, conditions=watch.conditions())
