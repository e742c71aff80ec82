"""Networks that hold the same parameters, so that a step of one is a step of all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from layerfold.errors import UsageError
from layerfold.files import replacing
from layerfold.modules import tensor_bytes

_DIGEST = "sha256"


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

    @property
    def is_whole(self) -> bool:
        """Whether the file is there, and holds what was written."""
        return self.path.is_file() and self._whole() is not None

    def read(self) -> dict[str, Tensor]:
        """Return the parameters.

        Raises:
            UsageError: the file is not there, or is not as it was written.
        """
        found = self._whole()
        if found is None:
            raise UsageError(
                f"{self.path}: is missing or damaged; run the same command again, which trains these weights again"
            )
        return found

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Keep parameters, in place of what the file held."""
        kept = {name: value.detach().to("cpu").contiguous() for name, value in weights.items()}
        with replacing(self.path) as partial:
            save_file(kept, partial, metadata={_DIGEST: _digest(kept)})

    def _whole(self) -> dict[str, Tensor] | None:
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError):
            return None
        # Files of an older version have no hash.
        return found if metadata.get(_DIGEST, None) in (None, _digest(found)) else None


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()
