"""Under what conditions something was measured: clocks, heat, neighbours; and what of it is worth a warning."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from layerfold.executor import processors
from layerfold.files import JsonObject
from layerfold.profiler.machine.reference import ReferenceTime, time_reference
from layerfold.profiler.machine.state import MachineState, machine_state
from layerfold.profiler.timing.block_statistics import trend

_SAMPLE_EVERY_S = 1.0
_GPU_SAMPLE_EVERY_S = 10.0
_BUSY_OTHERS = 0.1
_STOLEN = 0.02
_WAITING = 0.1
_SLOWER = 1.15
_TREND = 0.05
_CLOCK_DROP = 0.9
_LEAST_TICKS_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """State of the machine while something was measured; None or empty where the system does not say.

    Attributes:
        seconds: how long it took.
        processors: that this process may use.
        clock_low_mhz, clock_high_mhz: least and greatest processor clock seen.
        gpu_low_mhz, gpu_high_mhz, gpu_celsius: the GPU's, and its highest temperature.
        busy_others: share of the processors' time that other processes took.
        stolen: share of it that the hypervisor gave to other machines.
        throttles: times that a processor throttled for heat; of a GPU, samples at which something held its clock down.
        load: mean number of tasks that could run, this one included.
        samples: how often the reference work was timed.
        waiting: share of the reference work's time in which others had the processor.
        arithmetic_slowest, memory_slowest: the slowest tenth of the reference times over the quickest.
        reference_trend: by how much the arithmetic got slower (above 0) or faster, relative; 0 where by chance.
    """

    seconds: float
    processors: int
    clock_low_mhz: float | None = None
    clock_high_mhz: float | None = None
    gpu_low_mhz: float | None = None
    gpu_high_mhz: float | None = None
    gpu_celsius: float | None = None
    busy_others: float | None = None
    stolen: float | None = None
    throttles: int | None = None
    load: float | None = None
    samples: int = 0
    waiting: float = 0.0
    arithmetic_slowest: float = 1.0
    memory_slowest: float = 1.0
    reference_trend: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for a reader of the numbers, in plain words, each with what can be done."""
        found = []
        if self.throttles:
            found.append(
                f"the device throttled {self.throttles} times: it was hot or out of power; cool it or lower "
                "its clock, and measure again"
            )
        elif _dropped(self.clock_low_mhz, self.clock_high_mhz):
            found.append(
                f"the processor's clock went between {self.clock_low_mhz:.0f} and {self.clock_high_mhz:.0f} "
                "MHz; fix it (cpupower frequency-set) for numbers that repeat"
            )
        if _dropped(self.gpu_low_mhz, self.gpu_high_mhz):
            found.append(
                f"the GPU's clock went between {self.gpu_low_mhz:.0f} and {self.gpu_high_mhz:.0f} MHz; "
                "lock it (nvidia-smi -lgc) for numbers that repeat"
            )
        if self.stolen is not None and self.stolen > _STOLEN:
            found.append(
                f"other virtual machines took {self.stolen:.0%} of the processor time; "
                "a machine of one's own repeats better"
            )
        if self.busy_others is not None and self.busy_others > _BUSY_OTHERS:
            found.append(
                f"other processes took {self.busy_others:.0%} of the time of the {self.processors} "
                "processor(s) used; stop them, or pin this command to a free one (taskset)"
            )
        elif self.waiting > _WAITING:
            found.append(f"others had the processor for {self.waiting:.0%} of the time that reference work ran")
        if abs(self.reference_trend) > _TREND:
            way = "slower" if self.reference_trend > 0 else "faster"
            found.append(
                f"the machine got {abs(self.reference_trend):.0%} {way} from beginning to end, on the same "
                "work; entries measured far apart in time are less comparable"
            )
        elif self.arithmetic_slowest > _SLOWER:
            found.append(
                f"the same arithmetic took up to {self.arithmetic_slowest:.2f} times its quickest: "
                "the clock changes, or a neighbour shares the core"
            )
        if self.memory_slowest > max(_SLOWER, 1.1 * self.arithmetic_slowest) * 1.15:
            found.append(
                f"the same memory copy took up to {self.memory_slowest:.2f} times its quickest: "
                "something else uses the memory bus or the caches"
            )
        return tuple(found)

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold: what is known, and the warnings."""
        known = {name: _rounded(value) for name, value in asdict(self).items() if value is not None}
        return {**known, "warnings": list(self.warnings)}


class Watch:
    """Watches the machine from when it is made until ``conditions`` is asked.

    Call ``sample`` whenever nothing is being timed; it looks at most once per second.

    Args:
        has_gpu: watch the first GPU too.
        state, reference: where the facts come from; without a reference its work is not done.
    """

    def __init__(
        self,
        *,
        has_gpu: bool = False,
        state: Callable[..., MachineState] = machine_state,
        reference: Callable[[], ReferenceTime] | None = time_reference,
    ) -> None:
        self._has_gpu, self._state, self._reference = has_gpu, state, reference
        self._next_s = self._next_gpu_s = -math.inf
        self._states: list[MachineState] = []
        self._references: list[ReferenceTime] = []
        self.sample()

    def sample(self, *, is_due: bool = False) -> None:
        """Look at the machine, if the last look is a second ago or ``is_due``."""
        now_s = time.monotonic()
        if not is_due and now_s < self._next_s:
            return
        asks_gpu = self._has_gpu and now_s >= self._next_gpu_s  # nvidia-smi is a process of its own
        if asks_gpu:
            self._next_gpu_s = now_s + _GPU_SAMPLE_EVERY_S
        self._next_s = now_s + _SAMPLE_EVERY_S
        self._states.append(self._state(has_gpu=asks_gpu))
        if self._reference is not None:
            self._references.append(self._reference())

    def conditions(self) -> Conditions:
        """Return what has been seen so far."""
        self.sample(is_due=True)
        first, last = self._states[0], self._states[-1]
        seconds = last.at_s - first.at_s
        clocks = [clock for state in self._states for clock in state.clocks_mhz]
        gpus = [state.gpu for state in self._states if state.gpu is not None]
        loads = [state.load for state in self._states if state.load is not None]
        throttles = None if first.throttles is None or last.throttles is None else last.throttles - first.throttles
        if gpus:
            throttles = (throttles or 0) + sum(gpu.is_throttled for gpu in gpus)
        count = len(processors())
        return Conditions(
            seconds=seconds,
            processors=count,
            clock_low_mhz=min(clocks, default=None),
            clock_high_mhz=max(clocks, default=None),
            gpu_low_mhz=min((gpu.clock_mhz for gpu in gpus), default=None),
            gpu_high_mhz=max((gpu.clock_mhz for gpu in gpus), default=None),
            gpu_celsius=max((gpu.temperature_c for gpu in gpus), default=None),
            busy_others=_share(first, last, count),
            stolen=_stolen(first, last, count),
            throttles=throttles,
            load=statistics.fmean(loads) if loads else None,
            samples=len(self._references),
            waiting=statistics.fmean(each.waiting for each in self._references) if self._references else 0.0,
            arithmetic_slowest=_slowest([each.arithmetic_ms for each in self._references]),
            memory_slowest=_slowest([each.memory_ms for each in self._references]),
            reference_trend=trend([each.arithmetic_ms for each in self._references]),
        )


def _share(first: MachineState, last: MachineState, count: int) -> float | None:
    """Return the share of the processors' time that others used; None for spans too short for the kernel's ticks."""
    seconds = last.at_s - first.at_s
    if first.busy_s is None or last.busy_s is None or seconds < _LEAST_TICKS_S:
        return None
    others_s = (last.busy_s - first.busy_s) - (last.own_s - first.own_s)
    return min(max(others_s / (seconds * count), 0.0), 1.0)


def _stolen(first: MachineState, last: MachineState, count: int) -> float | None:
    seconds = last.at_s - first.at_s
    if first.stolen_s is None or last.stolen_s is None or seconds < _LEAST_TICKS_S:
        return None
    return min(max((last.stolen_s - first.stolen_s) / (seconds * count), 0.0), 1.0)


def _slowest(values: list[float]) -> float:
    """Return the value that a tenth exceed, relative to the least: one slow sample is no condition."""
    if not values:
        return 1.0
    ordered = sorted(values)
    return ordered[int(0.9 * (len(ordered) - 1))] / ordered[0]


def _dropped(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and low < _CLOCK_DROP * high


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
