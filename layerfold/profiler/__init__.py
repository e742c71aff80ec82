"""Measure latency: segments, whole networks, and whether a budget is kept. Names are looked up on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfold.profiler.backends import backend_names, get_backend
    from layerfold.profiler.measure import Measurement, MeasurePolicy, measure_runners
    from layerfold.profiler.profile import profile_network
    from layerfold.profiler.verify import Verification, verify_solution
    from layerfold.profiler.whole import BenchmarkReport, NetworkLatency, benchmark_networks

_HOMES = {
    "backends": ("backend_names", "get_backend"),
    "measure": ("MeasurePolicy", "Measurement", "measure_runners"),
    "profile": ("profile_network",),
    "verify": ("Verification", "verify_solution"),
    "whole": ("BenchmarkReport", "NetworkLatency", "benchmark_networks"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BenchmarkReport",
    "MeasurePolicy",
    "Measurement",
    "NetworkLatency",
    "Verification",
    "backend_names",
    "benchmark_networks",
    "get_backend",
    "measure_runners",
    "profile_network",
    "verify_solution",
]


def __getattr__(name: str) -> Any:
    # Backends and policies are of use without torch; profiling needs it.
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
