"""The exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layerfold.graph.copying import copy_module


class AveragedWeights:
    """Moving average of a network's weights and statistics over the last steps, the latest counting most.

    timm's ModelEmaV3 with its warm-up: in the first steps the decay is lower, so that short runs forget their start.

    Args:
        model: on its device, stored as it will be trained.
        decay: of an average's share at each step, 0..1; the average is over some 1 / (1 - decay) steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        from timm.utils.model_ema import ModelEmaV3

        self._model = model
        # Copied by us, not by timm: a network may hold what Python cannot copy.
        like = next(model.parameters())
        self._average = ModelEmaV3(nn.Linear(1, 1, device=like.device, dtype=like.dtype), decay=decay, use_warmup=True)
        self._average.module = copy_module(model).eval()

    def update(self, steps: int) -> None:
        """Take in the weights after ``steps`` steps."""
        self._average.update(self._model, step=steps)

    @property
    def state(self) -> dict[str, Tensor]:
        """The average, by the model's own names."""
        found: dict[str, Tensor] = self._average.module.state_dict()
        return found

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from an average that :attr:`state` gave."""
        self._average.module.load_state_dict(state)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the averaged weights. The model, not a copy: what fades is in its modules."""
        own = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        with torch.no_grad():
            self._model.load_state_dict(self.state)
            try:
                yield
            finally:
                self._model.load_state_dict(own)
