"""What the backends of layerfold share: their options, and how these are checked."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import ClassVar

from layerfold.errors import UsageError, nearest_names
from layerfold.export.precision import PRECISIONS, canonical_precision, has_quantised_nodes, is_half, to_half
from layerfold.profiler.backends.protocol import BackendFacts, BackendOptions, Runner

LAYOUTS = ("nchw", "channels_last")
USUAL_PRECISION, USUAL_LAYOUT = PRECISIONS[0], LAYOUTS[0]
NAMED_OPTIONS = frozenset({"name", "device", "threads", "precision", "layout"})
"""What every backend is asked for by an argument of its own; the rest are options of one backend."""


class BackendBase:
    """Options and facts that every backend has.

    Args:
        device: one of ``devices``; None for the first.
        threads: worker threads on a CPU. 1 by default: on shared or small machines it is what can be reproduced,
            and several runners alive at once then do not disturb each other. Set it to what the deployed program uses.
        precision: ``float32``, ``float16``, or ``int8`` for graphs with QuantizeLinear and DequantizeLinear nodes.
        layout: ``nchw``, or ``channels_last`` where the device has it: of the input and the feature maps.

    Raises:
        UsageError: an option that breaks a rule, or a precision or layout that the device lacks.
    """

    name: ClassVar[str]
    requires: ClassVar[dict[str, str]]
    extra: ClassVar[str | None] = None
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(
        self,
        *,
        device: str | None = None,
        threads: int = 1,
        precision: str = USUAL_PRECISION,
        layout: str = USUAL_LAYOUT,
    ) -> None:
        self.device = self.devices[0] if device is None else device
        if self.device not in self.devices:
            raise UsageError(
                f"device={device!r} is not one of backend {self.name!r}; choose from {', '.join(self.devices)}"
            )
        self.threads = self._checked_threads(threads)
        self.precision = canonical_precision(precision)
        self.layout = self._one_of("layout", layout, self.layouts(self.device), LAYOUTS)

    @classmethod
    def available_devices(cls) -> tuple[str, ...]:
        """Return the devices that can be used now."""
        return cls.devices

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Return the precisions of a device."""
        return ("float32",)

    @classmethod
    def layouts(cls, device: str) -> tuple[str, ...]:
        """Return the layouts of a device."""
        return ("nchw",)

    @property
    def options(self) -> BackendOptions:
        """What was chosen and changes latency."""
        threads: BackendOptions = {} if self.is_gpu else {"threads": self.threads}
        return {"device": self.device, **threads, "precision": self.precision, "layout": self.layout}

    @property
    def is_gpu(self) -> bool:
        """Whether the device computes, and this machine's processors only launch."""
        return self.device != "cpu"

    def is_available(self) -> bool:
        """Say whether the device can be used now, and has the precision.

        Raises:
            UsageError: the device is there, but lacks the precision.
        """
        if self.device not in self.available_devices():
            return False
        self._one_of("precision", self.precision, self.precisions(self.device), PRECISIONS)
        return True

    def provenance(self) -> BackendFacts:
        """Return backend, versions, device, driver, options."""
        device, driver = self.device_facts()
        versions = {module: module_version(module) for module in (*self.requires, "onnx")}
        return {"backend": self.name, "versions": versions, "device": device, "driver": driver, "options": self.options}

    def device_facts(self) -> tuple[str, str]:
        """Return the device's name and its driver's version, empty where there is none."""
        return cpu_name(), ""

    def compile(self, onnx_bytes: bytes) -> Runner:
        """Compile a graph in this backend's precision; see :meth:`Backend.compile`."""
        return self._compile(self._in_precision(onnx_bytes))

    def _compile(self, onnx_bytes: bytes) -> Runner:
        raise NotImplementedError

    def _in_precision(self, onnx_bytes: bytes) -> bytes:
        """Return the graph in the precision asked for: as it is, or in halves between float32 ends."""
        if self.precision == "float16" and not is_half(onnx_bytes):
            return to_half(onnx_bytes)
        if self.precision == "int8" and not has_quantised_nodes(onnx_bytes):
            raise UsageError(
                "precision='int8' needs a graph with QuantizeLinear and DequantizeLinear nodes, and this "
                "one has none; quantise it first with `layerfold export --precision int8 --data DATA`, or leave "
                "precision out: a graph that is quantised computes in int8 all the same"
            )
        return onnx_bytes

    def _checked_threads(self, threads: int) -> int:
        most = os.cpu_count() or 1
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= most:
            raise UsageError(f"threads={threads} must be a whole number from 1 to {most}, the processors here")
        if self.is_gpu and threads > 1:
            raise UsageError(
                f"threads={threads}: device {self.device!r} does not compute on the processors; leave threads out"
            )
        return threads

    def _one_of(self, option: str, value: str, has: Sequence[str], known: Sequence[str]) -> str:
        if value not in known:
            raise UsageError(
                f"{option}={value!r} is not known; choose from {', '.join(known)}{nearest_names(value, known)}"
            )
        if value not in has:
            raise UsageError(
                f"{option}={value!r}: device {self.device!r} of backend {self.name!r} lacks it; "
                f"choose from {', '.join(has)}"
            )
        return value


def module_version(name: str) -> str:
    """Return a module's own version: several distributions may bring the same module (onnxruntime-gpu)."""
    return str(getattr(import_module(name), "__version__", ""))


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an exception's message on one line of at most ``most`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."


def cpu_name() -> str:
    """Return the processor's model name and the number of processors, for example ``AMD EPYC, 2 processors``."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Hardware")):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} processors"
