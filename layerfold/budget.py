"""A latency budget: what was asked for, its limit beside a measured original, and whether a measurement keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from layerfold.arguments import check_bounds, check_fields, shown
from layerfold.errors import UsageError


class Verdict(Enum):
    """Verdict of a measurement on a budget: the interval lies below the limit, holds it, or lies above it."""

    KEEPS = "keeps"
    OPEN = "open"
    BREAKS = "breaks"


class Measured(Protocol):
    """A network's latency beside the original's: 95 % intervals in ms, and of the ratio paired round by round."""

    @property
    def original_ms(self) -> float: ...
    @property
    def low_ms(self) -> float: ...
    @property
    def high_ms(self) -> float: ...
    @property
    def ratio_low(self) -> float: ...
    @property
    def ratio_high(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """End-to-end milliseconds, a speed-up over the original, or simply the fastest plan.

    Attributes:
        budget_ms: above 0, or None.
        speedup: original latency / budget, above 0, or None. With neither, the fastest plan is wanted: no limit.

    Raises:
        UsageError: both, or one that is not above 0.
    """

    budget_ms: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.budget_ms is not None and self.speedup is not None:
            raise UsageError(f"budget_ms={self.budget_ms}, speedup={self.speedup}: give one of the two")
        check_bounds("budget_ms", self.budget_ms, above=0)
        check_bounds("speedup", self.speedup, above=0)

    @property
    def is_fastest(self) -> bool:
        """Say whether there is no limit to keep, and the least latency is wanted."""
        return self.budget_ms is None and self.speedup is None

    def in_ms(self, original_ms: float, margin: float = 0.0) -> float:
        """Return the limit in ms beside an original of that latency; 0, which nothing meets, for the fastest plan.

        Args:
            original_ms: as measured, or as predicted.
            margin: share of the budget that is to stay free, 0 to below 1.
        """
        limit_ms = self.budget_ms if self.speedup is None else original_ms / self.speedup
        return (limit_ms or 0.0) * (1 - margin)

    def verdict(self, found: Measured, margin: float = 0.0) -> Verdict:
        """Say whether a measurement keeps the budget with a share of it left free, leaves that open, or breaks it.

        Milliseconds are compared with the latency's interval. A speed-up is kept when the ratio's interval keeps it
        and the latency's too, and broken by the ratio alone: the original's median has an interval of its own.
        Everything keeps a budget without a limit.
        """
        if self.is_fastest:
            return Verdict.KEEPS
        limit_ms = self.in_ms(found.original_ms, margin)
        is_kept, is_broken = found.high_ms <= limit_ms, found.low_ms > limit_ms
        if self.speedup is not None:
            limit = (1 - margin) / self.speedup
            is_kept, is_broken = is_kept and found.ratio_high <= limit, found.ratio_low > limit
        return Verdict.KEEPS if is_kept else Verdict.BREAKS if is_broken else Verdict.OPEN

    def is_kept_by(self, found: Measured, margin: float = 0.0) -> bool:
        """Say whether the upper end of a measurement keeps the budget with a share of it left free."""
        return self.verdict(found, margin) is Verdict.KEEPS

    def __str__(self) -> str:
        if self.is_fastest:
            return "the fastest plan"
        return f"{self.budget_ms:g} ms" if self.budget_ms is not None else f"{self.speedup:g}x"

    def said(self, budget_ms: float) -> str:
        """Return the budget as it was asked for, and where that was a speed-up, the milliseconds that it comes to."""
        return str(self) if self.budget_ms is not None else f"{self} ({budget_ms:.4g} ms)"


def check_one_given(asked: Mapping[str, object], rule: str) -> None:
    """Refuse none or several of arguments that say alike what is wanted; None and False are not given.

    Args:
        asked: values by argument; a flag is named without its value.
        rule: the end of the error line, for example ``give one of the two``.
    """
    if sum(each is not None and each is not False for each in asked.values()) != 1:
        given = (name if name.startswith("-") else f"{name}={shown(value)}" for name, value in asked.items())
        raise UsageError(f"{', '.join(given)}: {rule}")
