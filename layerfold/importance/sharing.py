"""Networks that hold the same parameters, so that a step of one is a step of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from layerfold.files import replacing


class _Shared(nn.Parameter):
    """A parameter that a copy of its module holds too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def share_parameters(model: nn.Module) -> None:
    """Have whatever is copied or built from ``model`` from now on hold its very parameters, not copies of them."""
    # A parameter with two names stays one.
    twins = {id(each): _Shared(each.data, requires_grad=each.requires_grad) for each in model.parameters()}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, twins[id(parameter)])


class TakingTurns(nn.Module):
    """One network at a time, of several that hold the same parameters.

    Args:
        owner: the model whose parameters they hold; its state is this module's state.
        networks: what takes turns. Their buffers, such as BatchNorm statistics, are their own and no part of the state.
    """

    def __init__(self, owner: nn.Module, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.owner = owner
        self._networks = tuple(networks)  # in a tuple, for else each would add its names to the state
        self._turn = 0

    def give_turn(self, index: int) -> None:
        """Let the network of that index answer from now on."""
        self._turn = index

    def train(self, mode: bool = True) -> TakingTurns:
        for network in self._networks:
            network.train(mode)
        return super().train(mode)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self._networks[self._turn](images)
        return answer


class WeightsFile:
    """Parameters by name in a file of this machine, which workers read.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, Tensor]:
        """Return the parameters."""
        return load_file(self.path)

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Keep parameters, in place of what the file held."""
        with replacing(self.path) as partial:
            save_file({name: value.contiguous() for name, value in weights.items()}, partial)
