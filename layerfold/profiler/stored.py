"""What a cache file holds of a measurement, checked: a row that is no measurement counts as not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeGuard

from annotated_types import Ge, Gt, Le

from layerfold.errors import ProfilerError
from layerfold.files import Count, Finite, JsonObject, parse_json
from layerfold.profiler.measure import Measurement

_LARGEST_MS = 1e9
_Ms = Annotated[float, Gt(0), Le(_LARGEST_MS)]
_SpreadMs = Annotated[float, Ge(0), Le(_LARGEST_MS)]


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


def measurement_of(summary: object) -> Measurement | None:
    """Return the measurement that a row's text holds, or None where it holds none."""
    if not isinstance(summary, (str, bytes)):
        return None
    try:
        found = parse_json(summary, _Stored, source="summary", error=ProfilerError)
    except ProfilerError:
        return None
    if not found.low_ms <= found.median_ms <= found.high_ms:
        return None
    return Measurement(**vars(found))


def facts_of(
    summary: object, conditions: object, measured_at: object, took_s: object, build_s: object
) -> JsonObject | None:
    """Return all that a row holds as plain values, or None where one of them is damaged."""
    measurement = measurement_of(summary)
    if measurement is None or not isinstance(conditions, (str, bytes)):
        return None
    if not (_is_time(measured_at) and _is_time(took_s) and (build_s is None or _is_time(build_s))):
        return None
    try:
        seen = parse_json(conditions, JsonObject, source="conditions", error=ProfilerError)
    except ProfilerError:
        return None
    return {
        **measurement.to_json(),
        "conditions": seen,
        "measured_at": measured_at,
        "took_s": took_s,
        "build_s": build_s,
    }


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and 0 <= value < 1e12
