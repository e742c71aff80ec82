"""The state of an unfinished training run on disk: tensors and plain values only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layerfold.errors import FinetuneError, UsageError, WriteError
from layerfold.files import Count, JsonObject, parse_json, replacing
from layerfold.finetune._report import EpochRow
from layerfold.modules import tensor_bytes
from layerfold.torch_files import load_torch_file

StateDict = dict[str, Any]
"""What ``state_dict`` gives, and a file of ``torch.save`` holds: names to tensors, plain values and more of these."""
_SCHEMA = 3
_READ = (2, 3)
_FIRST_WITH_DIGEST = 3
_LONGEST = 100
_MEANINGS = {
    "model": " (another network, solution or weights)",
    "teacher": " (another network or weights)",
    "data": " (other images or preprocessing)",
}


@dataclass(kw_only=True)
class TrainingState:
    """Position of a run. ``epoch`` and ``batch`` say which batch comes next (from 0)."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    history: list[EpochRow] = field(default_factory=list)
    best_weights: dict[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """Parts that change with the state, each as its own ``state_dict`` gives it.

    Attributes:
        model, average: weights and buffers; no ``average`` where none is kept.
        optimizer, scaler: torch's own; no ``scaler`` where gradients are not scaled.
    """

    model: dict[str, Tensor]
    optimizer: StateDict
    average: dict[str, Tensor] | None
    scaler: StateDict | None


def copied_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of weights and buffers, on the CPU."""
    return {key: value.detach().to("cpu", copy=True) for key, value in weights.items()}


def network_hash(model: nn.Module) -> str:
    """Return a hash of structure and weights: a checkpoint goes on only from the network it was made for."""
    digest = hashlib.sha256(repr(model).encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]


def write_checkpoint(path: Path, config: JsonObject, state: TrainingState, parts: TrainingParts) -> None:
    """Write the state, and the parts that change with it; a run killed meanwhile leaves the file before it untouched.

    No generator's state is among them: what is random in a step comes from the seed and the step's number.
    """
    plain = {**vars(state), "history": [asdict(row) for row in state.history]}
    _replace(path, {"schema": _SCHEMA, "config": config, "state": plain, **vars(parts)})


def mark_diverged(path: Path) -> None:
    """Note in a checkpoint that its run went wrong later on: another learning rate may go on from it."""
    content = _read(path)
    _replace(path, {**content, "schema": _SCHEMA, "diverged": True})


def read_checkpoint(path: Path, config: JsonObject) -> tuple[TrainingParts, TrainingState]:
    """Read a state written for the same ``config``; after a run that diverged, the learning rate may be another.

    Returns:
        The parts that :func:`write_checkpoint` was given, and the state.

    Raises:
        UsageError: not such a file, a damaged one, or made with other options, another model or other images (the
            first difference is named).
    """
    content = _read(path)
    stored = content["config"]
    free = {"learning_rate"} if content.get("diverged") else set()
    for key in sorted((config.keys() | stored.keys()) - free, key=str):
        if config.get(key) != stored.get(key):
            raise UsageError(
                f"checkpoint_path={path}: was made with {key}={_shown(stored.get(key))}, now "
                f"{_shown(config.get(key))}{_MEANINGS.get(key, '')}; use the same, or delete the file to "
                "start over"
            )
    parts = TrainingParts(
        model=content["model"],
        optimizer=content["optimizer"],
        average=content.get("average"),
        scaler=content.get("scaler"),
    )
    return parts, _state_of(path, content["state"])


def damaged(path: Path, why: str) -> UsageError:
    """Return the error of a checkpoint whose content cannot be what was written."""
    return UsageError(f"checkpoint_path={path}: is damaged ({why}); delete it to start over")


def _read(path: Path) -> StateDict:
    try:
        content = load_torch_file(path)
    except UsageError as error:
        raise UsageError(
            f"checkpoint_path={path}: is no training checkpoint, or damaged ({error}); delete it to begin "
            "again, or name another"
        ) from error
    if not isinstance(content, dict) or not {"schema", "config"} <= content.keys():
        raise UsageError(f"checkpoint_path={path}: is no training checkpoint; delete it, or name another")
    schema = content["schema"]
    if schema not in _READ:
        raise UsageError(
            f"checkpoint_path={path}: is of another version of layerfold (schema {_shown(schema)}, this "
            f"one reads {_SCHEMA}); end the run with that version, or delete the file to start over"
        )
    if schema >= _FIRST_WITH_DIGEST and content.pop("digest", None) != _digest(content):
        raise damaged(path, "its content and its checksum differ")
    for name in ("config", "state", "model", "optimizer"):
        if not isinstance(content.get(name), dict):
            raise damaged(path, f"{name} is missing")
    return content


def _replace(path: Path, content: StateDict) -> None:
    whole = {**content, "digest": _digest(content)}
    try:
        with replacing(path) as partial:
            torch.save(whole, partial)
    except (WriteError, RuntimeError) as error:  # torch raises a RuntimeError for a full disk
        cause = " ".join(str(error.__cause__ or error).split())[:_LONGEST]
        raise FinetuneError(
            f"checkpoint_path={path}: could not be written ({cause}); make room there, and run the "
            "same command again: what was written before goes on"
        ) from error


def _digest(content: StateDict) -> str:
    """Return a hash of tensors and plain values: torch.save's own checksums are not looked at when it is read."""
    digest = hashlib.sha256()

    def update(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
            digest.update(tensor_bytes(value))
        elif isinstance(value, dict):
            digest.update(f"{len(value)} items;".encode())
            for key, each in value.items():
                update(key)
                update(each)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{len(value)} values;".encode())
            for each in value:
                update(each)
        else:
            digest.update(f"{type(value).__name__} {value!r};".encode())

    update(content)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """Plain values of a :class:`TrainingState`."""

    step: Count
    epoch: Count
    batch: Count
    loss_sum: float
    epoch_seconds: float
    history: list[EpochRow]


def _state_of(path: Path, found: StateDict) -> TrainingState:
    plain = {key: value for key, value in found.items() if key != "best_weights"}
    best = found.get("best_weights")
    if best is not None and not (isinstance(best, dict) and all(isinstance(each, Tensor) for each in best.values())):
        raise damaged(path, "best_weights are no tensors")
    state = parse_json(
        json.dumps(plain, default=str),
        _Plain,
        source=f"checkpoint_path={path}: state",
        remedy="delete the file to start over",
    )
    return TrainingState(**vars(state), best_weights=best)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
