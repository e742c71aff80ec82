"""What the operating system and the driver say of the machine at one moment; None for what they do not say."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfold.executor import processors

_PROC = Path("/proc")
_SYSTEM = Path("/sys/devices/system/cpu")
_GPU_QUERY = "clocks.sm,clocks.max.sm,temperature.gpu,clocks_throttle_reasons.active"
_GPU_IDLE = 0x1  # the reason that is set where there is nothing to do


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """A GPU's clock, its highest, its temperature and whether something holds the clock down."""

    clock_mhz: float
    highest_mhz: float
    temperature_c: float
    is_throttled: bool


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """Counters since the machine was started, and values of the moment.

    Attributes:
        at_s: monotonic clock.
        clocks_mhz: of the processors that this process may use.
        busy_s, stolen_s: seconds that those processors were busy, and that the hypervisor gave to other machines.
        own_s: processor time of this process and its children.
        throttles: how often those processors throttled for heat.
        load: tasks that can run now, this one included.
        gpu: the first GPU that this process may use.
    """

    at_s: float
    clocks_mhz: tuple[float, ...] = ()
    busy_s: float | None = None
    stolen_s: float | None = None
    own_s: float = 0.0
    throttles: int | None = None
    load: int | None = None
    gpu: GpuState | None = None


def machine_state(*, has_gpu: bool = False) -> MachineState:
    """Ask the machine; takes about a millisecond, with a GPU some tens."""
    mine = processors()
    busy_s, stolen_s = _processor_times(mine)
    times = os.times()
    return MachineState(
        at_s=time.monotonic(),
        clocks_mhz=_clocks(mine),
        busy_s=busy_s,
        stolen_s=stolen_s,
        own_s=times.user + times.system + times.children_user + times.children_system,
        throttles=_throttles(mine),
        load=_load(),
        gpu=gpu_state() if has_gpu else None,
    )


def _processor_times(mine: Sequence[int]) -> tuple[float | None, float | None]:
    """Return busy and stolen seconds from /proc/stat (proc(5)): user nice system idle iowait irq softirq steal."""
    names = {f"cpu{index}" for index in mine}
    busy = stolen = 0
    rows = [fields for line in _lines(_PROC / "stat") if (fields := line.split()) and fields[0] in names]
    if not rows:
        return None, None
    for fields in rows:
        user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
        busy += user + nice + system + irq + softirq
        stolen += steal
    per_s = os.sysconf("SC_CLK_TCK")
    return busy / per_s, stolen / per_s


def _clocks(mine: Sequence[int]) -> tuple[float, ...]:
    """Return clocks in MHz: from cpufreq, which says what runs, else from /proc/cpuinfo."""
    paths = [_SYSTEM / f"cpu{index}" / "cpufreq" / "scaling_cur_freq" for index in mine]
    if paths and paths[0].exists():
        return tuple(int(line) / 1000 for path in paths for line in _lines(path)[:1])
    every = [float(line.partition(":")[2]) for line in _lines(_PROC / "cpuinfo") if line.startswith("cpu MHz")]
    return tuple(every[index] for index in mine if index < len(every))


def _throttles(mine: Sequence[int]) -> int | None:
    counts = [
        int(line)
        for index in mine
        for line in _lines(_SYSTEM / f"cpu{index}" / "thermal_throttle" / "core_throttle_count")[:1]
    ]
    return sum(counts) if counts else None


def _load() -> int | None:
    for line in _lines(_PROC / "loadavg"):
        return int(line.split()[3].partition("/")[0])
    return None


def gpu_state() -> GpuState | None:
    """Return what ``nvidia-smi`` says of the first GPU, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
    if visible.isdigit():
        command.append(f"--id={visible}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        clock, highest, temperature, reasons = (cell.strip() for cell in done.stdout.splitlines()[0].split(","))
        return GpuState(
            clock_mhz=float(clock),
            highest_mhz=float(highest),
            temperature_c=float(temperature),
            is_throttled=bool(int(reasons, 16) & ~_GPU_IDLE),
        )
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
