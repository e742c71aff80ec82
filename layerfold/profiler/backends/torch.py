"""PyTorch: eager or compiled, on the CPU, or on a CUDA GPU with CUDA graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from layerfold.errors import ProfilerError, UsageError, nearest_names
from layerfold.export.precision import read_graph
from layerfold.profiler.backends.base import BackendBase, cpu_flags, one_line
from layerfold.profiler.backends.cuda import GraphedPasses, gpu_facts, has_gpu, input_copies
from layerfold.profiler.backends.onnxruntime import check_names, random_input
from layerfold.profiler.backends.protocol import Array, BackendOptions

if TYPE_CHECKING:
    import torch

COMPILE_MODES = ("none", "default", "max-autotune")


class TorchBackend(BackendBase):
    """The graph as a torch module (:mod:`layerfold.profiler.backends.torch_graph`).

    Args:
        compile_mode: ``none`` is eager; ``default`` and ``max-autotune`` are modes of ``torch.compile``, which on a CPU
            needs a C++ compiler and takes some seconds per graph.
        options: as of :class:`BackendBase`. Devices: ``cpu``, and ``cuda``, where a pass is one CUDA graph, inputs
            rotate through more memory than the L2 cache, and TF32 is off.
    """

    name: ClassVar[str] = "torch"
    requires: ClassVar[dict[str, str]] = {"torch": "torch"}
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __init__(self, *, compile_mode: str = "none", **options: Any) -> None:
        super().__init__(**options)
        if compile_mode not in COMPILE_MODES:
            raise UsageError(
                f"compile_mode={compile_mode!r} is not known; choose from {', '.join(COMPILE_MODES)}"
                f"{nearest_names(str(compile_mode), COMPILE_MODES)}"
            )
        self.compile_mode = compile_mode

    @classmethod
    def available_devices(cls) -> tuple[str, ...]:
        return ("cpu", "cuda") if has_gpu() else ("cpu",)

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("float32", "float16", "bfloat16") if has_bfloat16(device) else ("float32", "float16")

    @classmethod
    def layouts(cls, device: str) -> tuple[str, ...]:
        return ("nchw", "channels_last")

    @property
    def options(self) -> BackendOptions:
        return {**super().options, "compile_mode": self.compile_mode}

    def device_facts(self) -> tuple[str, str]:
        return gpu_facts() if self.is_gpu else super().device_facts()

    def _compile(self, onnx_bytes: bytes) -> TorchRunner:
        import torch

        from layerfold.profiler.backends.torch_graph import in_bfloat16, torch_module

        memory_format = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        module: Any = torch_module(onnx_bytes)
        if self.precision == "bfloat16":
            module = in_bfloat16(module)
        module = module.to(self.device)
        for buffer in module.buffers():
            if buffer.ndim == 4:
                buffer.data = buffer.data.contiguous(memory_format=memory_format)
        if self.compile_mode != "none":
            module = torch.compile(module, mode=self.compile_mode, dynamic=False, fullgraph=True)
        specs = input_specs(onnx_bytes)
        kind = GpuTorchRunner if self.is_gpu else TorchRunner
        try:
            return kind(module, specs, self.device, memory_format, self.threads)
        except Exception as error:  # whatever a kernel or the compiler raises
            raise ProfilerError(
                f"torch ({self.device}, {self.precision}) refused the graph: {one_line(error)}"
            ) from error


def has_bfloat16(device: str) -> bool:
    """Say whether a device computes in bfloat16: torch itself would emulate it on any."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not cpu_flags().isdisjoint(("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"))


class TorchRunner:
    """A module on the CPU with fixed inputs; the process's number of threads is that of the runner only meanwhile."""

    def __init__(
        self,
        module: Any,
        specs: dict[str, tuple[tuple[int, ...], Any]],
        device: str,
        memory_format: torch.memory_format,
        threads: int,
        seed: int = 0,
    ) -> None:
        self._module, self._device, self._format, self._threads = module, device, memory_format, threads
        self.inputs = {name: dtype for name, (_, dtype) in specs.items()}
        rng = np.random.default_rng(seed)
        self._values = tuple(self._tensor(random_input(list(shape), dtype, rng)) for shape, dtype in specs.values())
        self._prepare()

    def _prepare(self) -> None:
        self.run()

    def _tensor(self, value: Array) -> torch.Tensor:
        import torch

        made = torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
        return made.contiguous(memory_format=self._format) if made.ndim == 4 else made

    def run(self) -> None:
        import torch

        with torch.inference_mode(), _threads(self._threads):
            self._module(*self._values)

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        import torch

        check_names(inputs, self.inputs)
        values = [self._tensor(inputs[name].astype(dtype, copy=False)) for name, dtype in self.inputs.items()]
        with torch.inference_mode(), _threads(self._threads):
            return [each.contiguous().cpu().numpy() for each in self._module(*values)]

    def close(self) -> None:
        self._module, self._values = None, ()


class GpuTorchRunner(TorchRunner):
    """A module on a GPU, captured in CUDA graphs over rotating inputs."""

    def _prepare(self) -> None:
        import torch

        copies = input_copies(sum(each.nbytes for each in self._values))
        inputs = [tuple(each.clone() for each in self._values) for _ in range(copies)]

        def launch(index: int) -> object:
            with torch.inference_mode():
                return self._module(*inputs[index])

        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
            self._passes = GraphedPasses(launch, copies)
        self._inputs = inputs

    def run(self) -> None:
        self._passes.run()

    def device_ms(self, passes: int) -> float:
        """Return the mean time of a pass by the GPU's own clock."""
        return self._passes.device_ms(passes)

    def close(self) -> None:
        self._passes.close()
        self._inputs = []
        super().close()


def input_specs(onnx_bytes: bytes) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return input name -> (shape, NumPy type) of a graph with static shapes."""
    from onnx import helper

    graph = read_graph(onnx_bytes)
    weights = {each.name for each in graph.initializer}
    found: dict[str, tuple[tuple[int, ...], Any]] = {}
    for put in graph.input:
        if put.name in weights:
            continue
        kind = put.type.tensor_type
        shape = tuple(size.dim_value for size in kind.shape.dim)
        if not all(shape):
            raise UsageError(f"input {put.name!r} has no static shape; latency needs one: export with fixed sizes")
        found[put.name] = (shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return found


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Use this many threads meanwhile: the number is the whole process's, and training must not keep it."""
    import torch

    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
