"""Torch-TensorRT on an NVIDIA GPU: a torch module whose parts are TensorRT engines."""

from __future__ import annotations

from typing import ClassVar

from layerfold.errors import ProfilerError
from layerfold.profiler.backends.base import BackendBase, one_line
from layerfold.profiler.backends.cuda import gpu_facts, has_gpu
from layerfold.profiler.backends.onnxruntime import random_input
from layerfold.profiler.backends.torch import GpuTorchRunner, input_specs


class TorchTensorRtBackend(BackendBase):
    """``torch_tensorrt.compile`` of the graph's torch module, strongly typed and with TF32 off.

    The package itself asks for the GPU when it is imported, so that is left until one is known to be there.
    """

    name: ClassVar[str] = "torch_tensorrt"
    requires: ClassVar[dict[str, str]] = {"torch_tensorrt": "torch-tensorrt"}
    extra: ClassVar[str | None] = "torch-tensorrt"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    @classmethod
    def available_devices(cls) -> tuple[str, ...]:
        return ("cuda",) if has_gpu() else ()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("float32", "float16")

    def device_facts(self) -> tuple[str, str]:
        return gpu_facts()

    def _compile(self, onnx_bytes: bytes) -> GpuTorchRunner:
        import numpy as np
        import torch
        import torch_tensorrt

        from layerfold.profiler.backends.torch_graph import torch_module

        specs = input_specs(onnx_bytes)
        rng = np.random.default_rng(0)
        examples = [torch.from_numpy(random_input(list(shape), dtype, rng)).cuda() for shape, dtype in specs.values()]
        try:
            module = torch_tensorrt.compile(
                torch_module(onnx_bytes).cuda(),
                ir="dynamo",
                inputs=examples,
                min_block_size=1,
                disable_tf32=True,
                use_explicit_typing=True,
                require_full_compilation=False,
            )
            return GpuTorchRunner(module, specs, self.device, torch.contiguous_format, self.threads)
        except Exception as error:  # whatever its passes or TensorRT raise
            raise ProfilerError(f"torch_tensorrt refused the graph: {one_line(error)}") from error
