"""Write a merged network to the files that a program deploys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from layerfold.errors import ExportError, OptionalDependencyError, UsageError, nearest_names
from layerfold.export.engine import EngineReport, build_engine, write_with_facts
from layerfold.export.onnx import Inputs, OnnxCheck, check_onnx, export_onnx
from layerfold.files import JsonObject
from layerfold.modules import public_call
from layerfold.options import ExportOptions
from layerfold.settings import takes_settings

FORMATS = ("onnx", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written.

    Attributes:
        onnx_path: the ONNX file.
        check: its largest difference from the module, in ONNX Runtime.
        engine: the TensorRT engine, if it was built.
        skipped: format -> why it was left out.
    """

    onnx_path: Path
    check: OnnxCheck
    engine: EngineReport | None
    skipped: dict[str, str]

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold."""
        return {
            "onnx_path": str(self.onnx_path),
            "check": asdict(self.check),
            "engine": self.engine.to_json() if self.engine else None,
            "skipped": self.skipped,
        }


@takes_settings(options=ExportOptions)
@public_call
def export_network(
    merged: nn.Module,
    out: str | os.PathLike[str],
    formats: Sequence[str] = ("onnx",),
    *,
    options: ExportOptions | None = None,
    example_input: Inputs | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> ExportReport:
    """Export a network to ONNX, check the file in ONNX Runtime, and build an engine from it if asked for.

    Args:
        merged: a module, usually in deploy form; left untouched.
        out: folder for ``<name>.onnx`` (always written), ``<name>.engine`` and ``<name>.engine.json``.
        formats: out of ``onnx`` and ``tensorrt``.
        example_input: [N, C, H, W] or a tuple of inputs; fixes the shapes. None takes those a traced module remembers.
        options, settings: see :class:`ExportOptions`; a setting given by name takes the place of that of ``options``.
        timing_cache, log: as of :func:`layerfold.export.build_engine`.

    Raises:
        UsageError: unknown format, or no example input.
        ExportError: the export fails, or the file differs from the module.
        OptionalDependencyError: ``tensorrt`` was asked for and is not installed.

    Example:
        >>> report = lf.export_network(merged, "files", example_input=torch.zeros(1, 3, 8, 8))
        >>> report.onnx_path.name, report.check.max_rel < 1e-4
        ('model.onnx', True)
    """
    options = options or ExportOptions()
    name, preprocessing = options.name, options.preprocessing
    check_formats(formats)
    example = _remembered_input(merged) if example_input is None else example_input
    folder = Path(out)
    onnx_path = folder / f"{name}.onnx"
    if folder.exists() and not folder.is_dir():  # said before the export takes its time
        raise ExportError(f"out={str(out)!r}: is no folder; name another")
    onnx_bytes = export_onnx(merged, example)
    check = check_onnx(onnx_bytes, merged, _random_like(example), options.tolerance)
    write_with_facts(onnx_path, onnx_bytes, None if preprocessing is None else {"preprocessing": dict(preprocessing)})
    engine, skipped = engine_of(onnx_bytes, onnx_path, formats, options, timing_cache=timing_cache, log=log)
    return ExportReport(onnx_path=onnx_path, check=check, engine=engine, skipped=skipped)


def engine_of(
    onnx_bytes: bytes,
    onnx_path: Path,
    formats: Sequence[str],
    options: ExportOptions,
    *,
    timing_cache: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
) -> tuple[EngineReport | None, dict[str, str]]:
    """Build the engine beside an ONNX file if ``formats`` ask for one; return it, and why a format was left out."""
    if "tensorrt" not in formats:
        return None, {}
    if options.skip_missing and options.precision == "bfloat16":
        return None, {"tensorrt": "engines are built in float32, float16 or int8"}
    try:
        engine = build_engine(
            onnx_bytes,
            onnx_path.with_suffix(".engine"),
            precision=options.precision,
            compute_capabilities=options.compute_capabilities,
            timing_cache=timing_cache,
            log=log,
            preprocessing=options.preprocessing,
        )
    except OptionalDependencyError as error:
        if not options.skip_missing:
            raise
        return None, {"tensorrt": str(error)}
    return engine, {}


def check_formats(formats: Sequence[str]) -> None:
    """Refuse an unknown format, and name the nearest."""
    for each in formats:
        if each not in FORMATS:
            known = ", ".join(FORMATS)
            raise UsageError(f"format {each!r} is not known; choose from {known}{nearest_names(each, FORMATS)}")


def _remembered_input(module: nn.Module) -> tuple[torch.Tensor, ...]:
    """Return random inputs of the shapes that a traced module's placeholders carry."""
    if isinstance(module, fx.GraphModule):
        shapes = [node.meta.get("shape") for node in module.graph.nodes if node.op == "placeholder"]
        if shapes and all(shape is not None for shape in shapes):
            generator = torch.Generator().manual_seed(0)
            return tuple(torch.randn(tuple(shape), generator=generator) for shape in shapes)
    raise UsageError("example_input=None: this module does not remember its input's shape; give a tensor [N, C, H, W]")


def _random_like(example: Inputs) -> tuple[torch.Tensor, ...]:
    """Return fresh random inputs of the same shapes: an export that has baked its example in would pass on it."""
    generator = torch.Generator().manual_seed(1)
    values = example if isinstance(example, tuple) else (example,)
    return tuple(
        torch.randn(value.shape, generator=generator).to(value.dtype) if value.is_floating_point() else value
        for value in values
    )
