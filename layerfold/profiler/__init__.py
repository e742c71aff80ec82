"""Measure latency: segments, whole networks, and whether a budget is kept. Names are looked up on first use.

What a caller asks for stands here; how it is done, in rooms. Each imports only from those named behind it: ``table``
(how a latency table comes about), ``plans`` (whole networks under plans, and what they say of segments), ``graphs``
(what is measured, as ONNX) and ``store`` (the cache of measurements), ``backends`` and ``machine`` (what runs it, and
how that was meanwhile), ``timing`` (how a number is measured).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfold.profiler.backends import backend_names, get_backend
    from layerfold.profiler.benchmark import BenchmarkReport, NetworkLatency, benchmark_networks
    from layerfold.profiler.profile import profile_network
    from layerfold.profiler.timing.measurement import MeasurePolicy
    from layerfold.profiler.verify import Verification, verify_solution

_HOMES = {
    "backends": ("backend_names", "get_backend"),
    "benchmark": ("BenchmarkReport", "NetworkLatency", "benchmark_networks"),
    "profile": ("profile_network",),
    "timing.measurement": ("MeasurePolicy",),
    "verify": ("Verification", "verify_solution"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BenchmarkReport",
    "MeasurePolicy",
    "NetworkLatency",
    "Verification",
    "backend_names",
    "benchmark_networks",
    "get_backend",
    "profile_network",
    "verify_solution",
]


def __getattr__(name: str) -> Any:
    # Backends and policies are of use without torch; profiling needs it.
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
