"""What a summary reads of the results of steps, checked: ``run.json`` may be of an older version, or edited."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen

from layerfold.errors import UsageError
from layerfold.files import Finite, parse_json

_Ms = Annotated[float, Gt(0), Le(1e9)]
_Share = Annotated[float, Ge(0), Le(100)]


@dataclass(frozen=True, kw_only=True)
class _Network:
    name: str
    median_ms: _Ms
    low_ms: Finite
    high_ms: Finite
    is_settled: bool


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    conditions: _Conditions = field(default_factory=_Conditions)


@dataclass(frozen=True, kw_only=True)
class _Bench:
    is_within_budget: bool
    networks: Annotated[list[_Network], MinLen(2)]
    provenance: _Measured
    attempts: Annotated[int, Ge(1), Le(1000)]


@dataclass(frozen=True, kw_only=True)
class _Score:
    accuracy_pct: _Share | None
    agreement_pct: _Share | None


@dataclass(frozen=True, kw_only=True)
class _Scores:
    original: _Score
    compressed: _Score


@dataclass(frozen=True, kw_only=True)
class _Round:
    predicted_ms: Finite
    measured_ms: _Ms
    original_ms: _Ms
    low_ms: Finite
    high_ms: Finite
    ratio: Annotated[float, Gt(0), Le(1e9)]
    importance: Finite | None
    is_within: bool


@dataclass(frozen=True, kw_only=True)
class _Wholes:
    taken: list[Finite | None]
    score: str | None = None
    finalists: list[Finite | None] = field(default_factory=list)
    finalist_steps: int | None = None
    chosen: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Solved:
    rounds: Annotated[list[_Round], MinLen(1)]
    frontier: Annotated[list[tuple[Finite, Finite]], MinLen(1)]
    wholes: _Wholes | None = None


@dataclass(frozen=True, kw_only=True)
class _OnnxCheck:
    max_rel: Finite


@dataclass(frozen=True, kw_only=True)
class _Export:
    check: _OnnxCheck


_SHAPES: Mapping[str, type] = {
    "bench": _Bench,
    "evaluate": _Scores,
    "solve and verify": _Solved,
    "export": _Export,
}


def check_results(results: Mapping[str, Mapping[str, Any]], manifest: Path) -> None:
    """Refuse results that a summary could not show.

    Args:
        results: of the finished steps, by name.
        manifest: the file that they come from, for the error line.

    Raises:
        UsageError: a field that is missing, of another type or out of its bounds; names it.
    """
    remedy = "start again in this folder with --overwrite"
    for name, shape in _SHAPES.items():
        parse_json(json.dumps(results[name]), shape, source=f"{manifest}: steps.{name}.result", remedy=remedy)
    names = [each["name"] for each in results["bench"]["networks"]]
    if not {"original", "compressed"} <= {*names}:
        raise UsageError(f"{manifest}: steps.bench.result.networks: expected original and compressed; {remedy}")
