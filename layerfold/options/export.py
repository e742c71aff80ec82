"""How a network is exported. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerfold.settings import check_settings


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a network is exported.

    Attributes:
        precision, compute_capabilities: of an engine, as of :func:`layerfold.export.build_engine`.
        name: stem of the files.
        tolerance: largest difference of ONNX from the module, relative to the largest output.
        skip_missing: leave out a format whose package is not installed, and say so in the report, in place of an error.
        preprocessing: how images become inputs (the fields of ``layerfold.data.Preprocessing``), kept in a JSON file
            beside each file for ``layerfold run``; None to keep nothing.

    Example:
        >>> options = lf.ExportOptions(name="small")
        >>> options.precision
        'float32'
    """

    precision: str = "float32"
    compute_capabilities: Sequence[str] = ()
    name: str = "model"
    tolerance: float = 1e-4
    skip_missing: bool = False
    preprocessing: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_settings(self)
