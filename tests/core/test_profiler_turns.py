"""Runners take turns: ratios stay true on a machine that is slowed for half of the time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from layerfold.profiler.timing import blocks, turns
from layerfold.profiler.timing import clock as block_clock
from layerfold.profiler.timing.measurement import MeasurePolicy
from layerfold.profiler.timing.sentinel import Sentinel
from layerfold.profiler.timing.turns import quick_rounds, time_in_turns
from tests.core.clock import Clock


def test_rounds_during_which_everything_was_slow_are_set_aside() -> None:
    quick, slow, between = (1.0, 2.0), (1.25, 2.5), (1.0, 2.5)
    rounds = [quick, slow, quick, between, quick, slow, slow]
    assert quick_rounds(rounds) == [quick, quick, quick]


def test_where_every_round_is_slow_every_round_counts() -> None:
    assert len(quick_rounds([(1.25, 2.5)] * 9)) == 9


def test_choice_of_rounds_favours_no_runner() -> None:
    """A runner that is noisy by itself keeps its median: what is judged is the whole round."""
    values = [(10.0, 1.0 + 0.1 * (index % 5)) for index in range(50)]
    kept = quick_rounds(values)
    assert len(kept) == 50


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (turns, blocks, block_clock):
        monkeypatch.setattr(module, "time", found)
    monkeypatch.setattr(blocks, "involuntary_switches", lambda: 0)
    return found


QUIET = Sentinel(lambda: 1.0)


def test_ratio_is_true_while_the_machine_changes_its_speed(clock: Clock) -> None:
    runners = [clock.runner(0.002), clock.runner(0.003)]
    found = time_in_turns(
        runners, MeasurePolicy(target=0.01, cap_s=2.0, block_ms=1.0), are_latencies_wanted=True, sentinel=QUIET
    )
    assert found.ratios[0].estimate == pytest.approx(1.5, rel=1e-6)
    assert found.ratios[0].low <= found.ratios[0].estimate <= found.ratios[0].high
    assert found.contended > 0
    assert found.rounds == len(found.values_ms[1])
    assert max(found.values_ms[0]) == pytest.approx(2.0, rel=0.06)
    assert found.is_settled


def test_one_runner_alone_is_measured_too(clock: Clock) -> None:
    found = time_in_turns(
        [clock.runner(0.001)], MeasurePolicy(target=0.2, cap_s=0.2), are_latencies_wanted=True, sentinel=QUIET
    )
    assert found.ratios == ()
    assert found.rounds >= 8


class Neighbour:
    """Slows a runner by half and the other by a tenth while it is there: for nine seconds in ten.

    So a quarter of the rounds, which count as quick by their length, are mostly slow ones.
    """

    def __init__(self, clock: Clock, *, is_always: bool = False) -> None:
        self.clock, self.is_always = clock, is_always

    @property
    def is_there(self) -> bool:
        return self.is_always or self.clock.now % 5 >= 0.5

    def runner(self, seconds: float, factor: float) -> Callable[[], None]:
        def run() -> None:
            self.clock.now += seconds * (factor if self.is_there else 1.0)

        return run


def test_ratio_is_that_of_the_quiet_moments_where_a_neighbour_changes_it(clock: Clock) -> None:
    neighbour = Neighbour(clock)
    runners = [neighbour.runner(0.002, 1.5), neighbour.runner(0.003, 1.1)]
    sentinel = Sentinel(lambda: 150.0 if neighbour.is_there else 100.0, lambda: clock.now)
    assert not sentinel.is_slowed()
    clock.now = 1.0  # the neighbour is there first
    assert sentinel.is_slowed()
    found = time_in_turns(runners, MeasurePolicy(target=0.01, cap_s=2.0, block_ms=1.0), sentinel=sentinel)
    assert found.ratios[0].estimate == pytest.approx(1.5, rel=1e-6)
    assert not found.is_slowed


def test_neighbour_who_does_not_leave_is_said(clock: Clock) -> None:
    times = iter([100.0])
    neighbour = Neighbour(clock, is_always=True)
    runners = [neighbour.runner(0.002, 1.5), neighbour.runner(0.003, 1.1)]
    sentinel = Sentinel(lambda: next(times, 150.0), lambda: clock.now)
    assert not sentinel.is_slowed()
    found = time_in_turns(runners, MeasurePolicy(target=0.01, cap_s=0.5, block_ms=1.0), sentinel=sentinel)
    assert found.is_slowed
    assert found.ratios[0].estimate == pytest.approx(1.5 * 1.1 / 1.5, rel=1e-6)


def test_patience_waits_for_quiet_rounds_beyond_its_time(clock: Clock) -> None:
    neighbour, rng = Neighbour(clock), random.Random(0)
    jittered = [neighbour.runner(0.002 * rng.uniform(1.0, 1.02), 1.5) for _ in range(50)]
    runners = [lambda: rng.choice(jittered)(), neighbour.runner(0.003, 1.1)]
    sentinel = Sentinel(lambda: 150.0 if neighbour.is_there else 100.0, lambda: clock.now)
    policy, found = MeasurePolicy(target=1e-9, cap_s=4.0, block_ms=1.0), []
    for is_patient in (False, True):
        clock.now = 0.0
        found.append((time_in_turns(runners, policy, is_patient=is_patient, sentinel=sentinel), clock.now))
    (hasty, hasty_s), (patient, patient_s) = found
    assert hasty_s < 9.0
    assert 2.5 * hasty_s < patient_s < 25.0
    assert patient.rounds > 1.5 * hasty.rounds
    assert not hasty.is_slowed
