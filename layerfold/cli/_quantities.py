"""Quantities with units on the command line."""

from __future__ import annotations

import math
import re

from layerfold.errors import UsageError

_MS_PER_UNIT = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001, "µs": 0.001, "ns": 1e-6}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([^\d\s]*)")


def parse_ms(text: str, argument: str) -> float:
    """Return milliseconds from ``25.0``, ``25.0ms``, ``0.5s`` or ``800us``.

    Args:
        text: what the user gave.
        argument: the flag's name, for the error line.

    Raises:
        UsageError: no number, an unknown unit, or not above zero.
    """
    match = _QUANTITY.fullmatch(text.strip())
    factor = _MS_PER_UNIT.get(match[2]) if match else None
    if match is None or factor is None:
        raise UsageError(f"{argument} {text}: a latency in ms, us or s is expected, for example 4.5ms")
    value_ms = float(match[1]) * factor
    if not (0.0 < value_ms <= 1e9) or not math.isfinite(value_ms):
        raise UsageError(f"{argument} {text}: a latency above zero (at most 1e9 ms) is expected, for example 4.5ms")
    return value_ms


def parse_positions(text: str, argument: str) -> frozenset[int]:
    """Return positions from ``3,7,12-15``.

    Raises:
        UsageError: anything else.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,7})(?:-(\d{1,7}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 1_000_000:
            raise UsageError(f"{argument} {text}: positions are expected, for example 3,7,12-15")
        found.update(range(first, last + 1))
    return frozenset(found)


def parse_number(text: str, argument: str, *, least: float, most: float, example: str) -> float:
    """Return a finite number from ``least`` to ``most``.

    Raises:
        UsageError: anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise UsageError(f"{argument} {text}: a number from {least:g} to {most:g} is expected, for example {example}")
    return value
