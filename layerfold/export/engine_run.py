"""Load a TensorRT engine from a file, and read what stands beside it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le

from layerfold.errors import ExportError, UsageError
from layerfold.export.engine_check import check_header
from layerfold.export.loaded_engine import LoadedEngine
from layerfold.export.trt_library import import_tensorrt
from layerfold.files import Finite, JsonObject, read_bytes, read_json, sidecar_path

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
    digest = facts.engine_sha256
    if digest is not None and digest != hashlib.sha256(content).hexdigest():
        raise UsageError(f"{target}: is not the file that {target.name}.json was written for; build both again")
    trt = import_tensorrt(facts.library)
    try:
        check_header(content, trt)
    except ExportError as error:
        raise UsageError(f"{target}: {error}") from error
    return LoadedEngine(content, trt)


@dataclass(frozen=True, kw_only=True)
class StoredPreprocessing:
    """How images become inputs, as far as a file says; the fields are those of ``layerfold.data.Preprocessing``."""

    input_shape: list[Annotated[int, Ge(1), Le(1_000_000)]] | None = None
    mean: list[Finite] | None = None
    std: list[Finite] | None = None
    interpolation: str | None = None
    crop_pct: Finite | None = None
    is_resized: bool | None = None

    def to_json(self) -> JsonObject:
        """Return what is said."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class StoredFacts:
    """What is read again of the JSON beside an engine or an ONNX file; the rest is for people.

    Attributes:
        engine_sha256: of the engine.
        library: the package that built it.
        preprocessing: how images become inputs.
    """

    engine_sha256: str | None = None
    library: str | None = None
    preprocessing: StoredPreprocessing | None = None


def read_facts(path: Path) -> StoredFacts:
    """Return the JSON beside an engine or an ONNX file (``<name>.json``); where there is none, it says nothing.

    Raises:
        UsageError: it is no JSON object, or a field is of another type.
    """
    sidecar = sidecar_path(path)
    if not os.path.lexists(sidecar):
        return StoredFacts()
    return read_json(sidecar, StoredFacts, remedy="export again")
