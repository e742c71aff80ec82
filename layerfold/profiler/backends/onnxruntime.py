"""ONNX Runtime: its CPU, CUDA and TensorRT execution providers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np

from layerfold.errors import DeviceUnavailableError, ProfilerError, UsageError
from layerfold.profiler.backends.base import BackendBase, one_line
from layerfold.profiler.backends.cuda import gpu_facts, has_gpu
from layerfold.profiler.backends.protocol import Array, BackendOptions

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeBackend(BackendBase):
    """ONNX Runtime with all graph optimisations on.

    Devices are execution providers: ``cpu`` is in every package, ``cuda`` and ``tensorrt`` come with
    ``onnxruntime-gpu``. On a CPU, threads never spin while idle (``allow_spinning=0``). float16 on an x86 CPU is
    computed in float32 between casts: it is measured as it would run, which is slower than float32. On ``cuda``,
    TF32 is off, and ``layout="channels_last"`` asks the provider for its NHWC kernels.
    """

    name: ClassVar[str] = "onnxruntime"
    requires: ClassVar[dict[str, str]] = {"onnxruntime": "onnxruntime"}
    devices: ClassVar[tuple[str, ...]] = tuple(_PROVIDERS)

    @classmethod
    def available_devices(cls) -> tuple[str, ...]:
        import onnxruntime

        here = onnxruntime.get_available_providers()
        return tuple(
            device for device, provider in _PROVIDERS.items() if provider in here and (device == "cpu" or has_gpu())
        )

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("float32", "float16", "int8")

    @classmethod
    def layouts(cls, device: str) -> tuple[str, ...]:
        return ("nchw", "channels_last") if device == "cuda" else ("nchw",)

    @property
    def options(self) -> BackendOptions:
        return {**super().options, "provider": _PROVIDERS[self.device], "graph_optimization": "all"}

    def device_facts(self) -> tuple[str, str]:
        return gpu_facts() if self.is_gpu else super().device_facts()

    def _compile(self, onnx_bytes: bytes) -> OnnxRuntimeRunner:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        provider = _PROVIDERS[self.device]
        providers = [(provider, self._provider_options())]
        try:
            session = onnxruntime.InferenceSession(onnx_bytes, options, providers=providers)
        except Exception as error:  # its exception classes share no base but Exception
            raise ProfilerError(f"onnxruntime refused the graph: {one_line(error)}") from error
        if session.get_providers()[0] != provider:  # it falls back to the CPU with no more than a line of log
            raise DeviceUnavailableError(
                f"onnxruntime could not start {provider} and would run on the CPU instead; "
                "check that its CUDA, cuDNN and TensorRT libraries are those it was built for"
            )
        return OnnxRuntimeRunner(session, is_on_gpu=self.is_gpu)

    def _provider_options(self) -> dict[str, str]:
        if self.device == "cuda":
            return {"use_tf32": "0", "prefer_nhwc": str(int(self.layout == "channels_last"))}
        if self.device == "tensorrt":
            return {
                "trt_fp16_enable": str(int(self.precision == "float16")),
                "trt_int8_enable": str(int(self.precision == "int8")),
            }
        return {}


class OnnxRuntimeRunner:
    """A session with inputs and outputs bound once, on the device, so that a pass costs one call and no copy."""

    def __init__(self, session: Any, *, is_on_gpu: bool = False, seed: int = 0) -> None:
        self._session = session
        self.inputs = {put.name: _dtype_of(put.name, put.shape, put.type) for put in session.get_inputs()}
        self.input_names = list(self.inputs)
        rng = np.random.default_rng(seed)
        binding = session.io_binding()
        for put in session.get_inputs():
            value = random_input(put.shape, self.inputs[put.name], rng)
            if is_on_gpu:
                import onnxruntime

                binding.bind_ortvalue_input(put.name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
            else:
                binding.bind_cpu_input(put.name, value)
        for put in session.get_outputs():
            binding.bind_output(put.name, "cuda" if is_on_gpu else "cpu")
        self._binding = binding
        self._run = session.run_with_iobinding
        self._is_on_gpu = is_on_gpu

    def run(self) -> None:
        self._run(self._binding)
        if self._is_on_gpu:
            self._binding.synchronize_outputs()

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        check_names(inputs, self.inputs)
        given = {name: value.astype(self.inputs[name], copy=False) for name, value in inputs.items()}
        return [np.asarray(output) for output in self._session.run(None, given)]

    def close(self) -> None:
        self._run = self._binding = self._session = None


def check_names(inputs: dict[str, Array], known: Collection[str]) -> None:
    """Refuse inputs that are not exactly those of the graph."""
    if set(inputs) != set(known):
        raise UsageError(f"inputs {sorted(inputs)} must be exactly the graph's inputs {list(known)}")


def _dtype_of(name: str, shape: list[Any], kind: str) -> type[np.generic]:
    if any(not isinstance(size, int) for size in shape):
        raise UsageError(f"input {name!r} has the shape {shape}; latency needs static shapes: export with fixed ones")
    dtype = _DTYPES.get(kind)
    if dtype is None:
        raise UsageError(f"input {name!r} is of the type {kind}; supported: {', '.join(_DTYPES)}")
    return dtype


def random_input(shape: list[int], dtype: Any, rng: np.random.Generator) -> Array:
    """Return normally distributed numbers; of eight bits any numbers, of another type that is not floating zeros."""
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    if dtype in (np.int8, np.uint8):
        return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    return np.zeros(shape, dtype=dtype)
