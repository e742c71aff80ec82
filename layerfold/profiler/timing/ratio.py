"""A latency relative to another, measured in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RatioInterval:
    """A latency relative to the first runner's: median over rounds and its 95 % interval."""

    median: float
    low: float
    high: float
