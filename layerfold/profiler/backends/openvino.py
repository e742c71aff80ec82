"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import numpy as np

from layerfold.errors import ProfilerError
from layerfold.profiler.backends.base import BackendBase, one_line
from layerfold.profiler.backends.onnxruntime import check_names, random_input
from layerfold.profiler.backends.protocol import Array, BackendOptions
from layerfold.profiler.backends.torch import input_specs

_CAPABILITIES = {"FP32": "float32", "FP16": "float16", "BF16": "bfloat16", "INT8": "int8"}
_HINTS = {"float16": "f16", "bfloat16": "bf16"}


@functools.cache
def _core() -> Any:
    """Return the process's one Core.

    The CPU plugin of each gives the thread a signal stack and takes it away when it goes. Of two that do not go in the
    order of last in, first out, the thread is left with memory that is freed, and dies of the next signal (Ctrl-C).
    """
    import openvino

    return openvino.Core()


class OpenVinoBackend(BackendBase):
    """The CPU plugin with one stream and the latency hint; threads are not pinned to processors.

    float16 is there where the processor computes in it (AVX512-FP16, AMX-FP16, Arm), and so is bfloat16 (AVX512-BF16,
    AMX-BF16, Arm): inputs and outputs stay float32, as the plugin has it. ``layout="channels_last"`` makes
    the input's layout NHWC; the plugin chooses its own inside.
    """

    name: ClassVar[str] = "openvino"
    requires: ClassVar[dict[str, str]] = {"openvino": "openvino"}
    extra: ClassVar[str | None] = "openvino"

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        has = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return tuple(name for capability, name in _CAPABILITIES.items() if capability in has)

    @classmethod
    def layouts(cls, device: str) -> tuple[str, ...]:
        return ("nchw", "channels_last")

    @property
    def options(self) -> BackendOptions:
        return {**super().options, "performance_hint": "LATENCY", "streams": 1}

    def _compile(self, onnx_bytes: bytes) -> OpenVinoRunner:
        core = _core()
        specs = input_specs(onnx_bytes)
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # it would pin every runner of this process to the same processor
            # Unasked, it would compute float32 graphs in bfloat16 on processors that can.
            "INFERENCE_PRECISION_HINT": _HINTS.get(self.precision, "f32"),
        }
        try:
            model = core.read_model(onnx_bytes)
            if self.layout == "channels_last":
                model = _with_channels_last(model)
            compiled = core.compile_model(model, "CPU", settings)
        except Exception as error:  # openvino raises RuntimeError, with its whole stack in the message
            raise ProfilerError(f"openvino refused the graph: {one_line(error)}") from error
        return OpenVinoRunner(compiled, specs, is_channels_last=self.layout == "channels_last")


class OpenVinoRunner:
    """An infer request whose inputs are set once."""

    def __init__(
        self, compiled: Any, specs: dict[str, tuple[tuple[int, ...], Any]], *, is_channels_last: bool, seed: int = 0
    ) -> None:
        import openvino

        self._compiled, self._request = compiled, compiled.create_infer_request()
        self._is_channels_last = is_channels_last
        self.inputs = {name: dtype for name, (_, dtype) in specs.items()}
        # An input that nothing reads is left out of the compiled model.
        self._read = [name for put in compiled.inputs for name in put.names if name in specs]
        rng = np.random.default_rng(seed)
        self._kept = {
            name: self._arranged(random_input(list(specs[name][0]), specs[name][1], rng)) for name in self._read
        }
        for name, value in self._kept.items():
            self._request.set_tensor(name, openvino.Tensor(value, shared_memory=True))

    def run(self) -> None:
        self._request.infer()

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        check_names(inputs, self.inputs)
        request = self._compiled.create_infer_request()
        found = request.infer(
            {name: self._arranged(inputs[name].astype(self.inputs[name], copy=False)) for name in self._read}
        )
        return [np.array(found[output]) for output in self._compiled.outputs]

    def close(self) -> None:
        self._request = self._compiled = None

    def _arranged(self, value: Array) -> Array:
        is_image = self._is_channels_last and value.ndim == 4
        return np.ascontiguousarray(value.transpose(0, 2, 3, 1) if is_image else value)


def _with_channels_last(model: Any) -> Any:
    """Return the model taking its images as [batch, height, width, channels]."""
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    for index, put in enumerate(model.inputs):
        if put.partial_shape.rank.get_length() == 4:
            steps.input(index).tensor().set_layout(Layout("NHWC"))
            steps.input(index).model().set_layout(Layout("NCHW"))
    return steps.build()
