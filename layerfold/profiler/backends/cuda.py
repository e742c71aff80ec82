"""What the backends on NVIDIA GPUs share: facts of the device, CUDA graphs over rotating inputs, timing by events.

Through ``torch.cuda``, which layerfold has anyway: streams, graphs, events and buffers of one library, and TensorRT
takes its stream and its pointers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

_WARMUP_PASSES = 3
_MOST_COPIES = 64
_CACHE_MULTIPLE = 2


def has_gpu() -> bool:
    """Say whether an NVIDIA GPU and its driver are there."""
    import torch

    return torch.cuda.is_available()


def gpu_facts() -> tuple[str, str]:
    """Return the current GPU's name with its compute capability, and the driver's version."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}", _driver_version()


def input_copies(num_bytes: int) -> int:
    """Return how many inputs to rotate, so that none is found in the L2 cache: together they are twice its size.

    At most 64: an input so small that it takes more was written by the layer before it and is in the cache in the
    network too.
    """
    import torch

    cache_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(1, min(_MOST_COPIES, math.ceil(_CACHE_MULTIPLE * cache_bytes / max(num_bytes, 1))))


class GraphedPasses:
    """Forward passes captured in CUDA graphs, one per input, which share their memory.

    Args:
        launch: enqueues one forward pass on input ``index`` on torch's current stream.
        copies: how many inputs there are.
    """

    def __init__(self, launch: Callable[[int], object], copies: int) -> None:
        import torch

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._next = 0
        with torch.cuda.stream(self._stream):
            for _ in range(_WARMUP_PASSES):  # what allocates or compiles must not do so while it is captured
                launch(0)
        self._stream.synchronize()
        for index in range(copies):
            graph = torch.cuda.CUDAGraph()
            pool = self._graphs[0].pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool, stream=self._stream):
                launch(index)
            self._graphs.append(graph)

    def run(self) -> None:
        """Do one pass and wait for it."""
        self._replay()
        self._stream.synchronize()

    def device_ms(self, passes: int) -> float:
        """Return the mean time of a pass by the GPU's own clock, over ``passes`` in a row."""
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(self._stream)
        for _ in range(passes):
            self._replay()
        end.record(self._stream)
        end.synchronize()
        return float(begin.elapsed_time(end)) / passes

    def close(self) -> None:
        """Free the graphs and their memory."""
        self._graphs.clear()

    def _replay(self) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            self._graphs[self._next].replay()
        self._next = (self._next + 1) % len(self._graphs)


def _driver_version() -> str:
    """Return the driver's version as its kernel module says, else the newest CUDA version that it can run."""
    import torch

    try:
        with open("/sys/module/nvidia/version", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return f"CUDA {torch.version.cuda}"
