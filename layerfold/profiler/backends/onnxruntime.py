"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from layerfold.errors import ProfilerError, UsageError
from layerfold.profiler.backends.protocol import Array

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeBackend:
    """The CPU execution provider, all graph optimisations on.

    Args:
        threads: worker threads of a session. 1 by default: on shared or small machines it is what can be
            reproduced, and several sessions alive at once then do not disturb each other. Set it to what the
            deployed program will use. Threads never spin while idle (``allow_spinning=0``).
    """

    name: ClassVar[str] = "onnxruntime"
    requires: ClassVar[dict[str, str]] = {"onnxruntime": "onnxruntime", "onnx": "onnx"}
    extra: ClassVar[str | None] = None
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(self, *, threads: int = 1) -> None:
        most = os.cpu_count() or 1
        if not isinstance(threads, int) or not 1 <= threads <= most:
            raise UsageError(f"threads={threads} must be a whole number from 1 to {most}, the processors here")
        self.threads = threads

    @property
    def options(self) -> dict[str, Any]:
        return {"threads": self.threads}

    def is_available(self) -> bool:
        return True

    def provenance(self) -> dict[str, Any]:
        import onnx
        import onnxruntime

        return {
            "backend": self.name,
            "versions": {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__},
            "device": cpu_name(),
            "driver": "",
            "options": {**self.options, "provider": "CPUExecutionProvider", "graph_optimization": "all"},
        }

    def compile(self, onnx_bytes: bytes) -> OnnxRuntimeRunner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes share no base but Exception
            raise ProfilerError(f"onnxruntime refused the graph: {one_line(error)}") from error
        return OnnxRuntimeRunner(session)


class OnnxRuntimeRunner:
    """A session with inputs and outputs bound once, so that a pass costs one call and no copy."""

    def __init__(self, session: Any, seed: int = 0) -> None:
        self._session = session
        self.input_names = [put.name for put in session.get_inputs()]
        rng = np.random.default_rng(seed)
        binding = session.io_binding()
        for put in session.get_inputs():
            binding.bind_cpu_input(put.name, _random_input(put.name, put.shape, put.type, rng))
        for put in session.get_outputs():
            binding.bind_output(put.name)
        self._binding = binding
        self._run = session.run_with_iobinding

    def run(self) -> None:
        self._run(self._binding)

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        unknown = set(inputs) ^ set(self.input_names)
        if unknown:
            raise UsageError(f"inputs {sorted(inputs)} must be exactly the graph's inputs {self.input_names}")
        return [np.asarray(output) for output in self._session.run(None, inputs)]

    def close(self) -> None:
        self._run = self._binding = self._session = None


def _random_input(name: str, shape: list[Any], kind: str, rng: np.random.Generator) -> Array:
    if any(not isinstance(size, int) for size in shape):
        raise UsageError(f"input {name!r} has the shape {shape}; latency needs static shapes: export with fixed ones")
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise UsageError(f"input {name!r} is of the type {kind}; supported: {', '.join(_DTYPES)}")
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return np.zeros(shape, dtype=dtype)


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
