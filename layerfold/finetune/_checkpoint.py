"""The state of an unfinished training run on disk: tensors and plain values only."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerfold.errors import FinetuneError, UsageError

_SCHEMA = 2
_MEANINGS = {
    "model": " (another network, solution or weights)", "teacher": " (another network or weights)",
    "data": " (other images or preprocessing)",
}  # fmt: skip


@dataclass(kw_only=True)
class TrainingState:
    """Where a run stands. ``epoch`` and ``batch`` say which batch comes next (from 0)."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = None


def copied_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of weights and buffers, on the CPU."""
    return {key: value.detach().to("cpu", copy=True) for key, value in weights.items()}


def network_hash(model: nn.Module) -> str:
    """Return a hash of structure and weights: a checkpoint goes on only from the network it was made for."""
    digest = hashlib.sha256(repr(model).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_checkpoint(path: Path, config: dict[str, Any], state: TrainingState, **parts: Any) -> None:
    """Write the state, and the parts that change with it; a run killed meanwhile leaves the file before it untouched.

    No generator's state is among them: what is random in a step comes from the seed and the step's number.
    """
    _replace(path, {"schema": _SCHEMA, "config": config, "state": dict(vars(state)), **parts})


def mark_diverged(path: Path) -> None:
    """Note in a checkpoint that its run went wrong later on: another learning rate may go on from it."""
    _replace(path, {**torch.load(path, map_location="cpu", weights_only=True), "diverged": True})


def _replace(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.save(content, partial)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError for a full disk
        partial.unlink(missing_ok=True)
        raise FinetuneError(f"checkpoint_path={path}: could not be written ({str(error).splitlines()[0]}); make room "
                            "there, and run the same command again: what was written before goes on") from error
    os.replace(partial, path)


def read_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Read a state written for the same ``config``; after a run that diverged, the learning rate may be another.

    Raises:
        UsageError: not such a file, or made with other options, another model or other images (the first
            difference is named).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        schema, stored = content["schema"], content["config"]
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise UsageError(f"checkpoint_path={path}: is no training checkpoint; delete it, or name another") from error
    if schema != _SCHEMA:
        raise UsageError(f"checkpoint_path={path}: is of another version of layerfold (schema {schema}, this one reads "
                         f"{_SCHEMA}); end the run with that version, or delete the file to begin anew")
    free = {"learning_rate"} if content.get("diverged") else set()
    for key in sorted((config.keys() | stored.keys()) - free):
        if config.get(key) != stored.get(key):
            raise UsageError(f"checkpoint_path={path}: was made with {key}={stored.get(key)!r}, now {config.get(key)!r}"
                             f"{_MEANINGS.get(key, '')}; use the same, or delete the file to begin anew")
    found: dict[str, Any] = content
    return found
