"""Backends: what compiles and runs an ONNX graph on a device. One file each, one small protocol."""

from layerfold.profiler.backends.protocol import Backend, Runner
from layerfold.profiler.backends.registry import BACKENDS, backend_class, get_backend

__all__ = ["BACKENDS", "Backend", "Runner", "backend_class", "get_backend"]
