"""The measuring policy: intervals, interleaving, stopping."""

from __future__ import annotations

import itertools

import pytest
from scipy import stats

from layerfold.errors import UsageError
from layerfold.profiler.timing import blocks, measure
from layerfold.profiler.timing import clock as block_clock
from layerfold.profiler.timing.block_statistics import median_interval
from layerfold.profiler.timing.measure import measure_runners
from layerfold.profiler.timing.measurement import MeasurePolicy
from layerfold.profiler.timing.sentinel import SENTINEL
from tests.core.clock import Clock


def busy(loops: int):
    def run() -> int:
        total = 0
        for value in range(loops):
            total += value
        return total

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (measure, blocks, block_clock):
        monkeypatch.setattr(module, "time", found)
    monkeypatch.setattr(measure, "least_block_ms", lambda: 0.1)
    monkeypatch.setattr(blocks, "involuntary_switches", lambda: 0)
    return found


@pytest.mark.parametrize("count", [6, 7, 9, 10, 15, 20, 33, 64, 150, 200])
def test_rank_interval_covers_the_median_with_95_percent_and_no_narrower_one_does(count):
    low, high = median_interval(list(range(count)))
    rank = int(low)
    assert high == count - 1 - rank
    assert 1 - 2 * stats.binom.cdf(rank, count, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(rank + 1, count, 0.5) < 0.95


def test_rank_interval_of_many_values_is_never_too_narrow():
    for count in (201, 500, 5000):
        low, _ = median_interval(list(range(count)))
        assert 1 - 2 * stats.binom.cdf(low, count, 0.5) >= 0.95
        assert low > 0.4 * count - 40


def test_rank_interval_of_few_values_is_their_range():
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_measurement_gives_each_runner_its_time(clock):
    light, heavy = measure_runners([clock.runner(0.001), clock.runner(0.01)], MeasurePolicy(target=0.2, cap_s=0.3))
    assert 1.0 <= light.median_ms <= 1.4
    assert 10.0 <= heavy.median_ms <= 14.0
    assert light.low_ms <= light.median_ms <= light.high_ms
    assert light.blocks >= 10


def test_blocks_of_short_runners_hold_many_passes():
    (found,) = measure_runners([busy(10)], MeasurePolicy(target=0.2, cap_s=0.2, block_ms=0.5))
    assert found.runs / found.blocks > 50


def test_runners_are_interleaved_and_not_run_one_after_the_other():
    calls: list[str] = []

    def recorded(name: str):
        work = busy(20_000)

        def run() -> None:
            calls.append(name)
            work()

        return run

    measure_runners([recorded("a"), recorded("b")], MeasurePolicy(target=0.5, cap_s=1, warmup_cap_s=0.05))
    turns = [name for name, _ in itertools.groupby(calls)]
    assert len(turns) >= 12


@pytest.mark.parametrize("window", [2, 3])
def test_warm_up_ends_once_passes_no_longer_get_faster(clock, window):
    falling = [8.0, 6.0, 4.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    values = iter(falling)
    assert blocks.warm_up(lambda: next(values), cap_s=1.0, window=window) == 2.0
    assert len(list(values)) == len(falling) - 5 - window


def test_warm_up_ends_in_time_but_never_with_the_first_pass(clock):
    passes = []

    def slower() -> float:
        clock.now += 2.0
        passes.append(2000.0 / (1 + len(passes)))
        return passes[-1]

    assert blocks.warm_up(slower, cap_s=1.0, window=3) == 1000.0
    assert blocks.warm_up(slower, cap_s=100.0, window=3, enough_ms=1.0) == passes[-1]
    assert len(passes) == 3


@pytest.mark.parametrize(("pass_ms", "refills"), [(float("inf"), 1), (40.0, 1), (4.0, 3), (0.1, 5)])
def test_caches_are_filled_by_ten_milliseconds_of_passes_within_bounds(pass_ms, refills):
    assert blocks.refills_of(pass_ms, 5) == refills


def test_a_runner_plainly_above_its_limit_is_timed_three_times_only():
    passes = itertools.count()
    slow = busy(200_000)

    def run() -> None:
        next(passes)
        slow()

    (found,) = measure_runners([run], rough_above_ms=[0.001])
    assert (found.blocks, found.runs, found.is_settled) == (3, 3, False)
    assert next(passes) == 6  # one cold pass, two that decide, three timed
    assert found.low_ms <= found.median_ms <= found.high_ms


def test_a_measurement_that_does_not_settle_is_flagged_and_ends():
    work = itertools.cycle([busy(1_000), busy(30_000)])
    (found,) = measure_runners([lambda: next(work)()], MeasurePolicy(target=1e-6, cap_s=0.05, warmup_cap_s=0.05))
    assert not found.is_settled
    assert found.half_width > 1e-6


def test_finished_measurements_are_handed_over_at_once():
    finished: dict[int, float] = {}

    def store(index, measurement):
        finished[index] = measurement.median_ms

    found = measure_runners([busy(100), busy(5_000)], MeasurePolicy(target=0.3, cap_s=0.1), on_finished=store)
    assert finished == {index: each.median_ms for index, each in enumerate(found)}


@pytest.mark.parametrize("field", [{"target": 0}, {"target": 1.5}, {"cap_s": 0}, {"min_blocks": 3}])
def test_policy_names_the_value_that_breaks_its_rule(field):
    ((name, value),) = field.items()
    with pytest.raises(UsageError, match=f"{name}={value}"):
        MeasurePolicy(**field)


def test_blocks_timed_beside_a_neighbour_are_run_again_and_counted(monkeypatch):
    slowed = itertools.cycle([True, False])
    monkeypatch.setattr(SENTINEL, "is_slowed", lambda: next(slowed))
    policy = MeasurePolicy(target=0.5, cap_s=1.0, block_ms=0.2, warmup_cap_s=0.05)
    found = measure_runners([lambda: sum(range(2000))], policy)[0]
    assert found.disturbed >= 2
    assert found.median_all_ms is not None
    monkeypatch.setattr(SENTINEL, "is_slowed", lambda: True)
    stuck = measure_runners([lambda: sum(range(2000))], MeasurePolicy(target=0.5, cap_s=0.1, warmup_cap_s=0.05))[0]
    assert stuck.blocks >= 3
    assert stuck.disturbed > 0
