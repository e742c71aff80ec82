"""Conditions: what the machine says while something is measured, and what is worth a warning."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import ClassVar

import pytest

from layerfold.executor import processors
from layerfold.profiler.backends import BackendBase
from layerfold.profiler.machine.conditions import Conditions, Watch
from layerfold.profiler.machine.reference import ReferenceTime, time_reference
from layerfold.profiler.machine.state import GpuState, MachineState, gpu_state, machine_state
from layerfold.profiler.store.cache import open_cache

QUIET = ReferenceTime(arithmetic_ms=0.2, memory_ms=1.0, waiting=0.0)


def watched(states: list[MachineState], references: list[ReferenceTime]) -> Conditions:
    """Let a watch see these states and reference times, in order."""
    state, reference = iter(states), iter(references)
    watch = Watch(state=lambda **_: next(state), reference=lambda: next(reference))
    for _ in range(len(states) - 2):
        watch.sample(is_due=True)
    return watch.conditions()


def test_reference_work_takes_time_and_says_how_long():
    found = time_reference()
    assert 0 < found.arithmetic_ms < found.memory_ms * 100
    assert 0 <= found.waiting < 1


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="no /proc on this system")
def test_this_machine_says_what_it_does():
    state = machine_state()
    assert state.busy_s > 0
    assert state.own_s > 0
    assert state.load >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be pinned here")
def test_a_real_neighbour_on_the_same_processor_is_seen():
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(here)})
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        watch = Watch()
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            watch.sample()
        found = watch.conditions()
    finally:
        neighbour.kill()
        neighbour.wait()
        os.sched_setaffinity(0, here)
    assert found.processors == 1
    assert found.busy_others > 0.2
    assert any("other processes took" in warning for warning in found.warnings)


def test_a_quiet_machine_gets_no_warning():
    states = [
        MachineState(at_s=float(i), clocks_mhz=(3000.0,), busy_s=0.9 * i, stolen_s=0.0, own_s=0.9 * i, load=1)
        for i in range(12)
    ]
    found = watched(states, [QUIET] * 12)
    assert found.warnings == ()
    assert found.to_json()["warnings"] == []
    assert (found.seconds, found.samples) == (11.0, 12)


def test_what_disturbs_is_said_in_plain_words():
    n = len(processors())
    states = [
        MachineState(
            at_s=float(i), clocks_mhz=(3000.0 - 50 * i,), busy_s=n * i * 0.5, stolen_s=0.1 * i * n, own_s=0.0, load=4
        )
        for i in range(12)
    ]
    slower = [ReferenceTime(arithmetic_ms=0.2 + 0.01 * i, memory_ms=1.0 + i / 4, waiting=0.0) for i in range(12)]
    text = "\n".join(watched(states, slower).warnings)
    assert "clock went between 2450 and 3000 MHz" in text
    assert "other virtual machines took 10%" in text
    assert "other processes took 50%" in text
    assert "slower from beginning to end" in text
    assert "memory bus" in text


def test_a_throttled_device_is_said_first():
    states = [
        MachineState(
            at_s=float(i),
            throttles=3 * i,
            gpu=GpuState(clock_mhz=1000.0 + 700 * (i == 0), highest_mhz=1700.0, temperature_c=90.0, is_throttled=i > 0),
        )
        for i in range(4)
    ]
    warnings = watched(states, [QUIET] * 4).warnings
    assert "throttled 12 times" in warnings[0]
    assert "GPU's clock went between 1000 and 1700 MHz" in warnings[1]


def test_a_watch_looks_at_most_once_a_second_unless_asked():
    looks = []
    watch = Watch(state=lambda **_: looks.append(1) or MachineState(at_s=0.0), reference=lambda: QUIET)
    for _ in range(50):
        watch.sample()
    assert len(looks) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "1410, 1980, 63, 0x0000000000000004\n",
            GpuState(clock_mhz=1410, highest_mhz=1980, temperature_c=63, is_throttled=True),
        ),
        (
            "345, 1980, 31, 0x0000000000000001\n",
            GpuState(clock_mhz=345, highest_mhz=1980, temperature_c=31, is_throttled=False),
        ),
        ("[N/A], [N/A], 31, [N/A]\n", None),
        ("", None),
    ],
)
def test_what_nvidia_smi_prints_is_read(tmp_path, monkeypatch, line, expected):
    program = tmp_path / "nvidia-smi"  # in place of the driver's, which machines without a GPU lack
    program.write_text(f"#!/bin/sh\nprintf '%s' '{line}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_state() == expected


class OfAnotherPackage(BackendBase):
    """A backend as another package makes one, with a GPU."""

    name = "other"
    requires: ClassVar[dict[str, str]] = {}
    devices = ("cpu", "rocm")


class WithoutTheBase:
    """A backend that has the members of the protocol alone, as written before there was ``is_gpu``."""

    def __init__(self, device):
        self.options = {} if device is None else {"device": device}

    def provenance(self):
        return {"backend": "bare", "versions": {}, "device": "a device", "driver": "", "options": self.options}


class SaysItself(WithoutTheBase):
    is_gpu = False


@pytest.mark.parametrize(
    ("backend", "is_watched"),
    [
        (OfAnotherPackage(), False),
        (OfAnotherPackage(device="rocm"), True),
        (WithoutTheBase("cuda:1"), True),
        (WithoutTheBase("cpu"), False),
        (WithoutTheBase(None), False),
        (SaysItself("npu"), False),
    ],
)
def test_a_gpu_is_watched_whichever_package_its_backend_comes_from(tmp_path, monkeypatch, backend, is_watched):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1500, 1980, 61, 0x1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with open_cache(False, backend) as cache:
        assert cache.conditions().gpu_celsius == (61.0 if is_watched else None)
