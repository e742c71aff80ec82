"""TensorRT on an NVIDIA GPU, through the package ``tensorrt`` or ``tensorrt_rtx``."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar

import numpy as np

from layerfold.cache_folder import default_cache_folder
from layerfold.errors import ExportError, ProfilerError
from layerfold.export.loaded_engine import LoadedEngine
from layerfold.export.trt_library import import_tensorrt
from layerfold.profiler.backends.base import BackendBase, module_version
from layerfold.profiler.backends.cuda import GraphedPasses, gpu_facts, has_gpu, input_copies
from layerfold.profiler.backends.onnxruntime import check_names, random_input
from layerfold.profiler.backends.protocol import Array, BackendFacts, BackendOptions


def _required() -> dict[str, str]:
    """Return the package to use: ``tensorrt`` where it is installed, else the one that PyPI has whole."""
    is_there = importlib.util.find_spec("tensorrt") is not None
    return {"tensorrt": "tensorrt"} if is_there else {"tensorrt_rtx": "tensorrt-rtx-cu13"}


class TensorRtBackend(BackendBase):
    """Engines built from the graph, run as CUDA graphs over inputs that rotate through more than the L2 cache.

    Engines can be built without a GPU (``layerfold export --formats tensorrt``); timing them needs one.

    Args:
        library: ``tensorrt`` or ``tensorrt_rtx``; None for ``tensorrt`` where it is installed, else the other.
        timing_cache: file of kernel timings for ``tensorrt``; None for one per GPU beside the cache of latencies.
        options: as of :class:`BackendBase`; float32 has TF32 off, int8 takes a QDQ model.
    """

    name: ClassVar[str] = "tensorrt"
    requires: ClassVar[dict[str, str]] = _required()
    extra: ClassVar[str | None] = "tensorrt"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def __init__(self, *, library: str | None = None, timing_cache: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.library = import_tensorrt(library or next(iter(self.requires))).__name__
        self._timing_cache = timing_cache

    @classmethod
    def available_devices(cls) -> tuple[str, ...]:
        return ("cuda",) if has_gpu() else ()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("float32", "float16", "int8")

    @property
    def options(self) -> BackendOptions:
        return {**super().options, "library": self.library, "tf32": False}

    def provenance(self) -> BackendFacts:
        facts = super().provenance()
        return {**facts, "versions": {self.library: module_version(self.library), "onnx": module_version("onnx")}}

    def device_facts(self) -> tuple[str, str]:
        return gpu_facts()

    def _compile(self, onnx_bytes: bytes) -> TensorRtRunner:
        from layerfold.export.engine import compile_engine

        name = "".join(each if each.isalnum() else "-" for each in self.device_facts()[0].lower())
        timing_cache = self._timing_cache or default_cache_folder() / f"tensorrt-{name}.timing"
        try:
            plan = compile_engine(onnx_bytes, precision=self.precision, library=self.library, timing_cache=timing_cache)
            return TensorRtRunner(LoadedEngine(plan.content, plan.library))
        except ExportError as error:
            raise ProfilerError(f"tensorrt refused the graph: {error}") from error


class TensorRtRunner:
    """An engine captured in CUDA graphs over rotating inputs."""

    def __init__(self, engine: LoadedEngine, seed: int = 0) -> None:
        self._engine = engine
        rng = np.random.default_rng(seed)
        values = {name: random_input(list(shape), dtype, rng) for name, (shape, dtype) in engine.inputs.items()}
        copies = input_copies(sum(value.nbytes for value in values.values()))
        self._buffers = [engine.buffers(values) for _ in range(copies)]
        self._passes = GraphedPasses(lambda index: engine.enqueue(self._buffers[index]), copies)

    def run(self) -> None:
        self._passes.run()

    def device_ms(self, passes: int) -> float:
        """Return the mean time of a pass by the GPU's own clock."""
        return self._passes.device_ms(passes)

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        check_names(inputs, self._engine.inputs)
        return self._engine.infer(inputs)

    def close(self) -> None:
        self._passes.close()
        self._buffers = []
        self._engine.close()
