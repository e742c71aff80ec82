"""Export a network to ONNX and to TensorRT engines. Names are looked up on first use: precisions need no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerfold.export.classify import Classifier, InputSpec, read_preprocessing
    from layerfold.export.engine import EngineReport, build_engine
    from layerfold.export.engine_run import load_engine
    from layerfold.export.loaded_engine import LoadedEngine
    from layerfold.export.network import ExportReport, export_network
    from layerfold.export.onnx import OnnxCheck, check_onnx, export_onnx
    from layerfold.export.precision import to_half

_HOMES = {
    "classify": ("Classifier", "InputSpec", "read_preprocessing"),
    "engine": ("EngineReport", "build_engine"),
    "engine_run": ("load_engine",),
    "loaded_engine": ("LoadedEngine",),
    "network": ("ExportReport", "export_network"),
    "onnx": ("OnnxCheck", "check_onnx", "export_onnx"),
    "precision": ("to_half",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Classifier",
    "EngineReport",
    "ExportReport",
    "InputSpec",
    "LoadedEngine",
    "OnnxCheck",
    "build_engine",
    "check_onnx",
    "export_network",
    "export_onnx",
    "load_engine",
    "read_preprocessing",
    "to_half",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
