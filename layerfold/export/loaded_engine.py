"""A TensorRT engine on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerfold.errors import DeviceUnavailableError, ExportError, UsageError
from layerfold.export.trt_library import library_logger

if TYPE_CHECKING:
    import torch

_Array = np.ndarray[Any, np.dtype[Any]]


class LoadedEngine:
    """An engine on the current GPU.

    Args:
        content: the serialised engine.
        trt: the package that built it.

    Attributes:
        inputs, outputs: name -> (shape, NumPy type).

    Raises:
        DeviceUnavailableError: no GPU.
        ExportError: TensorRT refuses the engine.
    """

    def __init__(self, content: bytes, trt: Any) -> None:
        import torch

        if not torch.cuda.is_available():
            raise DeviceUnavailableError(
                "running a TensorRT engine needs an NVIDIA GPU and its driver, and this "
                "machine has none; run the ONNX file instead, on the CPU"
            )
        logger = library_logger(trt)
        logger.errors.clear()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise ExportError(f"TensorRT cannot load the engine: {logger.last()}")
        self._context = self._engine.create_execution_context()
        self.inputs: dict[str, tuple[tuple[int, ...], Any]] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], Any]] = {}
        for name in map(self._engine.get_tensor_name, range(self._engine.num_io_tensors)):
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            facts = (tuple(self._engine.get_tensor_shape(name)), trt.nptype(self._engine.get_tensor_dtype(name)))
            (self.inputs if is_input else self.outputs)[name] = facts

    def buffers(self, inputs: dict[str, _Array]) -> dict[str, torch.Tensor]:
        """Return GPU tensors by name: the inputs' values, and room for the outputs."""
        import torch

        made = {
            name: torch.from_numpy(np.ascontiguousarray(inputs[name].astype(dtype, copy=False))).cuda()
            for name, (_, dtype) in self.inputs.items()
        }
        for name, (shape, dtype) in self.outputs.items():
            made[name] = torch.from_numpy(np.zeros(shape, dtype)).cuda()
        return made

    def enqueue(self, buffers: dict[str, torch.Tensor]) -> None:
        """Start one forward pass on torch's current stream."""
        import torch

        for name, buffer in buffers.items():
            self._context.set_tensor_address(name, buffer.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise ExportError("TensorRT could not start the engine; see what it said with --log when it was built")

    def infer(self, inputs: dict[str, _Array]) -> list[_Array]:
        """Return the outputs, in the engine's order.

        Raises:
            UsageError: inputs of other names or shapes.
        """
        import torch

        shapes = {name: shape for name, (shape, _) in self.inputs.items()}
        given = {name: value.shape for name, value in inputs.items()}
        if given != shapes:
            raise UsageError(f"inputs {given} must be exactly the engine's {shapes}")
        buffers = self.buffers(inputs)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.enqueue(buffers)
        stream.synchronize()
        return [buffers[name].cpu().numpy() for name in self.outputs]

    def close(self) -> None:
        """Free the engine and its memory."""
        self._context = self._engine = self._runtime = None
