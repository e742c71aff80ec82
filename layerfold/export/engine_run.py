"""Load a TensorRT engine from a file, and read what stands beside it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from layerfold.errors import ExportError, UsageError
from layerfold.export.engine_check import check_header
from layerfold.export.loaded_engine import LoadedEngine
from layerfold.export.trt_library import import_tensorrt
from layerfold.files import Finite, read_bytes, read_json, sidecar_path

_MOST_BYTES = 16 << 30


def load_engine(path: str | os.PathLike[str]) -> LoadedEngine:
    """Load an engine file, by the package that its JSON names.

    Raises:
        UsageError: no such file, or one that is not what its JSON says.
        OptionalDependencyError: that package is not installed.
        DeviceUnavailableError: no GPU.
        ExportError: another version, or TensorRT refuses it.
    """
    target = Path(path)
    content = read_bytes(target, most_bytes=_MOST_BYTES)
    facts = read_facts(target)
    digest = facts.get("engine_sha256")
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise UsageError(f"{target}: is not the file that {target.name}.json was written for; build both again")
    trt = import_tensorrt(facts.get("library"))
    try:
        check_header(content, trt)
    except ExportError as error:
        raise UsageError(f"{target}: {error}") from error
    return LoadedEngine(content, trt)


def read_facts(path: Path) -> dict[str, Any]:
    """Return the JSON beside an engine or an ONNX file (``<name>.json``); empty where there is none.

    Raises:
        UsageError: it is no JSON object.
    """
    sidecar = sidecar_path(path)
    if not os.path.lexists(sidecar):
        return {}
    facts = read_json(sidecar, _Facts, remedy="export again")
    found = {name: value for name, value in vars(facts).items() if value is not None}
    if facts.preprocessing is not None:
        found["preprocessing"] = {name: value for name, value in vars(facts.preprocessing).items() if value is not None}
    return found


@dataclass(frozen=True, kw_only=True)
class _Preprocessing:
    """How images become inputs; see ``layerfold.data.Preprocessing``."""

    input_shape: list[Annotated[int, Ge(1), Le(1_000_000)]] | None = None
    mean: list[Finite] | None = None
    std: list[Finite] | None = None
    interpolation: str | None = None
    crop_pct: Finite | None = None
    is_resized: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What is read again of a sidecar; the rest is for people."""

    engine_sha256: str | None = None
    library: str | None = None
    preprocessing: _Preprocessing | None = None
