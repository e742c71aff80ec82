"""Weights from a file into a module, without running any code of that file."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  (only what torch.load raises)
from typing import Any

import torch
from torch import Tensor, nn

from layerfold.errors import UsageError, nearest_names

_WRAPPING_KEYS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or from a pickle that holds only tensors and plain values.

    A state dict inside ``state_dict``, ``model`` or ``model_state_dict`` is found; the prefixes that
    ``DataParallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``) put before every key are taken off.

    Raises:
        UsageError: no such file, not a weights file, a TorchScript archive, or a pickle with code in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"weights={path}: no such file; give a .safetensors file or a saved state_dict")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(loaded, Mapping):
        for key in _WRAPPING_KEYS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping):
        raise UsageError(f"weights={path}: holds a {type(loaded).__name__}; save model.state_dict()")
    state = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UsageError(
                f"weights={path}: entry {key!r} is a {type(value).__name__}, not a tensor; save model.state_dict()"
            )
        state[key] = value
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Load the weights of ``path`` into ``module``, every key of it, and return the file's SHA-256.

    Counters named ``num_batches_tracked`` may be missing: old checkpoints have none, and nothing in eval mode
    reads them.

    Raises:
        UsageError: as ``read_weights``; or a key is missing, unexpected or of another shape (the first is named).
    """
    path = Path(path)
    state = read_weights(path)
    _check_state(module, state, path)
    module.load_state_dict(state, strict=False)
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_state(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(wrong)} of another shape"
    if missing:
        hint = nearest_names(missing[0], unexpected) or "; are these weights of another model?"
        raise UsageError(f"weights={path}: key {missing[0]!r} is missing ({counts}){hint}")
    if unexpected:
        raise UsageError(f"weights={path}: key {unexpected[0]!r} is not in the model ({counts}); "
                         "are these weights of another model?")
    if wrong:
        key = wrong[0]
        stored, wanted = tuple(state[key].shape), tuple(expected[key].shape)
        remedy = "are these weights of another model?"
        if len(wrong) <= 2 and stored[1:] == wanted[1:]:
            remedy = f"for a classifier of {stored[0]} classes pass num_classes={stored[0]}"
        elif len(stored) == 4 and stored[0] == wanted[0] and stored[2:] == wanted[2:] and len(wrong) == 1:
            remedy = f"for {stored[1]}-channel input pass in_channels={stored[1]}"
        raise UsageError(f"weights={path}: key {key!r} has shape {stored}, the model's is {wanted} ({counts}); "
                         f"{remedy}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"weights={path}: not a safetensors file ({_first_line(error)})") from error


def _read_pickle(path: Path) -> Any:
    if _is_torchscript(path):
        raise UsageError(f"weights={path}: is a TorchScript archive, which holds code; save model.state_dict() instead")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UsageError(
            f"weights={path}: holds Python objects other than tensors, so loading it would run code; "
            "save model.state_dict(), or convert it to safetensors"
        ) from error
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint
        raise UsageError(f"weights={path}: not a PyTorch checkpoint ({_first_line(error)})") from error


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
