"""The sentinel tells a slowed processor from a quick one, and in the end takes the machine as it is."""

from __future__ import annotations

from layerfold.profiler.timing.sentinel import Sentinel, loop_ns


class Machine:
    """A processor whose speed and clock are set by hand."""

    def __init__(self) -> None:
        self.took, self.now_s = 100.0, 0.0
        self.sentinel = Sentinel(lambda: self.took, lambda: self.now_s)


def test_a_fifth_more_is_slowed_and_a_tenth_is_not() -> None:
    machine = Machine()
    assert not machine.sentinel.is_slowed()
    machine.took = 110.0
    assert not machine.sentinel.is_slowed()
    machine.took = 150.0
    assert machine.sentinel.is_slowed()
    machine.took = 90.0
    assert not machine.sentinel.is_slowed()
    machine.took = 110.0
    assert machine.sentinel.is_slowed()


def test_one_slow_loop_is_chance() -> None:
    times = iter([100.0, 300.0, 101.0, 300.0, 300.0])
    sentinel = Sentinel(lambda: next(times))
    assert [sentinel.is_slowed() for _ in range(3)] == [False, False, True]


def test_machine_that_stays_slow_is_taken_as_it_is() -> None:
    machine = Machine()
    machine.sentinel.is_slowed()
    machine.took = 150.0
    found = []
    for _ in range(70):
        machine.now_s += 1.0
        found.append(machine.sentinel.is_slowed())
    assert found[:60] == [True] * 60
    assert not any(found[63:])


def test_break_starts_the_minute_anew() -> None:
    machine = Machine()
    machine.sentinel.is_slowed()
    for second in range(150):
        machine.now_s, machine.took = float(second), 100.0 if second % 50 == 0 else 150.0
        assert machine.sentinel.is_slowed() == bool(second % 50)


def test_loop_takes_time() -> None:
    assert 1e3 < loop_ns() < 1e9
