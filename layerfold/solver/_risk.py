"""Uncertain entries: which latency a sum stays within, with a given probability."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

from layerfold.arguments import shown
from layerfold.errors import UsageError


@cache
def quantile(risk: float) -> float:
    """Return z such that a normal sum exceeds mean + z * deviation with probability ``risk``.

    Entries are taken as independent and normal. ``risk`` may be at most 0.5: above it, more spread would count
    as better.

    Raises:
        UsageError: risk below 1e-12 or above 0.5.
    """
    if not 1e-12 <= risk <= 0.5:
        raise UsageError(f"risk={shown(risk)}: expected a probability from 1e-12 to 0.5, for example 0.05")
    return NormalDist().inv_cdf(1.0 - risk)
