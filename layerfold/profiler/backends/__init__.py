"""Backends: what compiles and runs an ONNX graph on a device. One file each, one small protocol.

Imports no other room of the profiler.
"""

from layerfold.profiler.backends.base import BackendBase
from layerfold.profiler.backends.protocol import Array, Backend, BackendFacts, BackendOptions, Runner, is_gpu
from layerfold.profiler.backends.registry import backend_class, backend_names, get_backend
from layerfold.profiler.backends.to_time import compile_to_time, is_symmetric, quantisation_digest

__all__ = [
    "Array",
    "Backend",
    "BackendBase",
    "BackendFacts",
    "BackendOptions",
    "Runner",
    "backend_class",
    "backend_names",
    "compile_to_time",
    "get_backend",
    "is_gpu",
    "is_symmetric",
    "quantisation_digest",
]
