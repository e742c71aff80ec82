"""Quantities with units on the command line."""

from __future__ import annotations

import math
import re

from layerfold.errors import UsageError

_MS_PER_UNIT = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001, "µs": 0.001, "ns": 1e-6}
_DIGITS = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(_DIGITS)
_QUANTITY = re.compile(rf"({_DIGITS})\s*([^\d\s]*)")


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


def finite_number(text: str) -> float:
    """Return the number that ``text`` is in plain digits, as ``1.5`` or ``1e-3``; NaN for anything else."""
    match = _NUMBER.fullmatch(text.strip())
    value = float(text) if match else math.nan
    return value if math.isfinite(value) else math.nan


def parse_speedup(text: str, argument: str = "--speedup") -> float:
    """Return how many times as fast, from ``1.5`` or ``1.5x``.

    Raises:
        UsageError: anything else.
    """
    try:
        return parse_number(text.strip().removesuffix("x"), argument, least=1e-6, most=1e6, example="1.5")
    except UsageError:
        raise UsageError(f"{argument} {text}: a number from 1e-06 to 1e+06 is expected, for example 1.5") from None


def parse_percent(text: str, argument: str, *, most: float, example: str) -> float:
    """Return a share from percent: 0.02 from ``2``.

    Raises:
        UsageError: no number, or outside 0 to ``most`` percent.
    """
    return parse_number(text.strip().removesuffix("%"), argument, least=0.0, most=most, example=example) / 100


def parse_margin(text: str) -> float:
    """Return ``--margin``, in percent of the budget."""
    return 100 * parse_percent(text, "--margin", most=50.0, example="2")


def parse_alpha(text: str) -> float:
    """Return ``--alpha``."""
    return parse_number(text, "--alpha", least=0.0, most=1e6, example="1.0")


def parse_whole(text: str, argument: str, *, least: int, most: int = 10**9) -> int:
    """Return a whole number from ``least`` to ``most``.

    Raises:
        UsageError: anything else.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise UsageError(f"{argument} {text}: a whole number of at least {least} is expected")
    if not least <= int(text) <= most:
        limit = f"at least {least}" if int(text) < least else f"at most {most}"
        raise UsageError(f"{argument} {text}: must be {limit}")
    return int(text)


def parse_positions(text: str, argument: str) -> frozenset[int]:
    """Return positions from ``3,7,12-15``.

    Raises:
        UsageError: anything else.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,7})(?:-([0-9]{1,7}))?\s*", part)
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
    value = finite_number(text)
    if not least <= value <= most:
        raise UsageError(f"{argument} {text}: a number from {least:g} to {most:g} is expected, for example {example}")
    return value
