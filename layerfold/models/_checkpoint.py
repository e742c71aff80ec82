"""The sets of weights that a file holds, each under the name by which it can be asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerfold.errors import UsageError
from layerfold.files import check_regular
from layerfold.torch_files import load_torch_file, plain_array, stands_for

_DEEPEST = 4
_MOST_SETS = 200
_MOST_HEADER = 100_000_000
"""Bytes of a safetensors header, as its own library has it."""
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OTHER_FORMATS = {
    ".onnx": "is an ONNX file, which layerfold does not read as weights",
    ".h5": "is an HDF5 file",
    ".hdf5": "is an HDF5 file",
    ".keras": "is a Keras file",
    ".tflite": "is a TFLite file",
    ".npz": "is an archive of NumPy",
    ".npy": "is an array of NumPy",
    ".pb": "is a TensorFlow graph",
    ".pt2": "is an exported program",
    ".engine": "is a TensorRT engine",
    ".gguf": "is a GGUF file",
}


def read_sets(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return every mapping of names to tensors in a file by its place: ``""`` is the top, then ``state_dict``.

    Names that compiling or sharding put into keys (``_orig_mod.``) are taken out of them.

    Raises:
        UsageError: no file, not a weights file, one that holds code or no set of tensors.
    """
    try:
        check_regular(path)
        loaded = _read(path)
    except UsageError as error:
        raise UsageError(f"weights={path}: {error}") from error
    if not isinstance(loaded, Mapping):
        raise UsageError(f"weights={path}: holds a {stands_for(loaded)}, not a state_dict; save model.state_dict()")
    sets = {}
    for name, found in _mappings(loaded, "", 0):
        sets[name] = found
        if len(sets) > _MOST_SETS:
            break
    if not sets:
        held = ", ".join(f"{str(key)[:40]!r} ({stands_for(value)})" for key, value in list(loaded.items())[:5])
        raise UsageError(
            f"weights={path}: holds no tensors by name{', only ' + held if held else ''}; save model.state_dict()"
        )
    return sets


def _mappings(value: Mapping[Any, Any], name: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    tensors = {}
    for key, each in value.items():
        each = plain_array(each)
        if isinstance(key, str) and not isinstance(each, Mapping):
            tensor = _tensor(each)
            if tensor is not None:
                tensors[key] = tensor
    if tensors:
        yield name, _without_wrappers(tensors)
    if depth < _DEEPEST:
        for key, each in value.items():
            if isinstance(key, str) and isinstance(each, Mapping):
                yield from _mappings(each, f"{name}.{key}" if name else key, depth + 1)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    return None


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = {plain_key(key): value for key, value in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def plain_key(key: str) -> str:
    """Return a key without the names of wrappers that only compiling or sharding put there."""
    return _WRAPPERS.sub("", key)


def _read(path: Path) -> Any:
    with path.open("rb") as stream:
        head = stream.read(9)
    is_safetensors = len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER
    if is_safetensors or (path.suffix == ".safetensors" and head[:2] != b"PK"):
        return _read_safetensors(path)
    if (path.suffix in _OTHER_FORMATS and head[:2] != b"PK") or path.suffix in (".npz", ".pt2", ".keras"):
        raise UsageError(f"{_OTHER_FORMATS[path.suffix]}; give a .safetensors file or a state_dict of torch.save")
    if head[:2] == b"\x1f\x8b":
        raise UsageError("is compressed with gzip; unpack it first")
    return load_torch_file(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library's own, and those of torch for a dtype that it does not know
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"not a safetensors file, or a damaged one ({reason})") from error
