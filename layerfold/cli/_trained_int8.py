"""The quantised file of a network that was trained in int8: with the ranges that it was trained with."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from layerfold.cli._output import show
from layerfold.cli._text import facts
from layerfold.files import JsonObject

if TYPE_CHECKING:
    from torch import Tensor, nn


def has_ranges(module: nn.Module) -> bool:
    """Say whether a network was trained in int8."""
    from layerfold.merge import ACTIVATION_RANGES

    return ACTIVATION_RANGES in getattr(module, "meta", {})


def write_trained(
    module: nn.Module, example: Tensor, path: Path, preprocessing: JsonObject | None, *, is_shown: bool
) -> tuple[bytes, JsonObject]:
    """Write the quantised file of a network in deploy form that was trained in int8, and how far it is from it.

    Returns:
        The file's content, and what ``--json`` prints of it.
    """
    from layerfold.export.engine import write_with_facts
    from layerfold.qat import compare_quantised, quantised_onnx

    onnx_bytes = quantised_onnx(module, example)
    check = compare_quantised(onnx_bytes, module, example)
    write_with_facts(path, onnx_bytes, None if preprocessing is None else {"preprocessing": preprocessing})
    print(f"wrote {path}", file=sys.stderr)
    if is_shown:
        checked = f"differs from what was trained by {check.max_rel:.2g} of the largest output"
        show(facts([("ONNX", f"{path}, {path.stat().st_size / 2**20:.1f} MiB, int8"), ("check", checked)]))
    return onnx_bytes, {"onnx_path": str(path), "check": asdict(check), "skipped": {}}
