"""ONNX networks as modules, so that what scores modules scores them too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layerfold.quantise.observe import Runner


class OnnxModule(nn.Module):
    """An ONNX network as ONNX Runtime computes it on the CPU; in eval mode, without gradients or parameters.

    Args:
        onnx_bytes: of one image input with fixed shapes; its first output counts.

    Example:
        >>> network = OnnxModule(open("original.onnx", "rb").read())
        >>> network(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    def __init__(self, onnx_bytes: bytes) -> None:
        super().__init__()
        self._runner = Runner(onnx_bytes)
        self._batch = self._runner.batch

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output for images [any number, channels, height, width]."""
        values = images.detach().float().cpu().contiguous().numpy()
        steps = (values[first : first + self._batch] for first in range(0, len(values), self._batch))
        found = [outputs[0] for _, outputs in self._runner.run(steps)]
        return torch.cat([torch.from_numpy(each) for each in found])
