"""What a row of a cache file holds, checked: one that is no measurement counts as not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias, TypeGuard

from annotated_types import Ge, Gt, Le

from layerfold.errors import ProfilerError
from layerfold.files import Count, Finite, JsonObject, parse_json
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.measurement import Measurement
from layerfold.profiler.timing.ratio import MeasuredRatio, Ratio

_LARGEST_MS = 1e9
_Ms = Annotated[float, Gt(0), Le(_LARGEST_MS)]
_SpreadMs = Annotated[float, Ge(0), Le(_LARGEST_MS)]
_Ratio = Annotated[float, Gt(0), Le(1e9)]
_Bound = Annotated[float, Ge(0), Le(1e9)]


Reading: TypeAlias = Measurement | MeasuredRatio
"""What is stored: milliseconds, or a ratio."""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The fields of a ``Measurement``, with their bounds; lists as JSON has them."""

    median_ms: _Ms
    low_ms: _SpreadMs
    high_ms: _SpreadMs
    spread_ms: _SpreadMs
    blocks: Count
    runs: Count
    is_settled: bool
    disturbed: Count = 0
    median_all_ms: _Ms | None = None
    outliers: Count = 0
    outlier_ms: _SpreadMs | None = None
    quantiles_ms: tuple[_SpreadMs, ...] = ()
    trend: Finite = 0.0


@dataclass(frozen=True, kw_only=True)
class _StoredRatio:
    """The fields of a ``MeasuredRatio``, flat and with their bounds."""

    estimate: _Ratio
    low: _Bound
    high: _Bound
    rounds: Count
    contended: Count
    runs: Count
    is_settled: bool


def reading_of(kind: object, summary: object) -> Reading | None:
    """Return what a row's text holds, by its kind, or None where it holds none of that kind."""
    if not isinstance(summary, (str, bytes)):
        return None
    try:
        return _ratio_of(summary) if Kind(str(kind)).is_ratio else _measurement_of(summary)
    except (ProfilerError, ValueError):
        return None


def _measurement_of(summary: str | bytes) -> Measurement | None:
    found = parse_json(summary, _Stored, source="summary", error=ProfilerError)
    return Measurement(**vars(found)) if found.low_ms <= found.median_ms <= found.high_ms else None


def _ratio_of(summary: str | bytes) -> MeasuredRatio | None:
    found = parse_json(summary, _StoredRatio, source="summary", error=ProfilerError)
    if not found.low <= found.estimate <= found.high:
        return None
    return MeasuredRatio(
        ratio=Ratio(estimate=found.estimate, low=found.low, high=found.high),
        rounds=found.rounds,
        contended=found.contended,
        runs=found.runs,
        is_settled=found.is_settled,
    )


def facts_of(
    kind: object, summary: object, conditions: object, measured_at: object, took_s: object, build_s: object
) -> JsonObject | None:
    """Return all that a row holds as plain values, or None where one of them is damaged."""
    reading = reading_of(kind, summary)
    if reading is None or not isinstance(conditions, (str, bytes)):
        return None
    if not (_is_time(measured_at) and _is_time(took_s) and (build_s is None or _is_time(build_s))):
        return None
    try:
        seen = parse_json(conditions, JsonObject, source="conditions", error=ProfilerError)
    except ProfilerError:
        return None
    return {
        **reading.to_json(),
        "conditions": seen,
        "measured_at": measured_at,
        "took_s": took_s,
        "build_s": build_s,
    }


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and 0 <= value < 1e12
