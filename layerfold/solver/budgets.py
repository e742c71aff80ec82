"""Budgets of several devices, as end-to-end milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from layerfold.arguments import number, shown
from layerfold.budget import Budget, check_one_given
from layerfold.errors import UsageError
from layerfold.tables import LatencyTable
from layerfold.tables.fields import as_tuple

BudgetOf = Literal["end-to-end", "segments"]


def end_to_end_budgets(
    tables: Sequence[LatencyTable],
    *,
    budget_ms: float | Sequence[float] | None = None,
    speedup: float | None = None,
    budget_of: BudgetOf = "end-to-end",
) -> list[float]:
    """Return what was asked for as end-to-end milliseconds, one number per device.

    Args:
        tables: one per device.
        budget_ms, speedup, budget_of: see :meth:`Frontier.at`.

    Raises:
        UsageError: neither or both of budget and speedup, or one that is not above 0.
    """
    check_one_given({"budget_ms": budget_ms, "speedup": speedup}, "give one of the two")
    if speedup is not None:
        if not 1e-300 < number("speedup", speedup) < 1e300:
            raise UsageError(f"speedup={shown(speedup)}: expected a factor above 0, for example 1.5")
        return [Budget(speedup=speedup).in_ms(table.original_ms) for table in tables]
    given = as_tuple(budget_ms)
    values = [number("budget_ms", value) for value in ((budget_ms,) if given is None else given)]
    if len(values) != len(tables):
        raise UsageError(
            f"budget_ms={shown(budget_ms)}: {len(values)} budgets, expected one for each of {len(tables)} devices"
        )
    for value in values:
        if not 0.0 < value < math.inf:
            raise UsageError(f"budget_ms={shown(value)}: expected milliseconds above 0, for example 4.5")
    if budget_of == "segments":
        return [table.end_to_end_ms(float(value)) for table, value in zip(tables, values, strict=True)]
    if budget_of != "end-to-end":
        raise UsageError(f"budget_of={shown(budget_of)}: expected 'end-to-end' or 'segments'")
    return values


def checked_budgets(budgets_ms: Sequence[float], devices: int) -> list[float]:
    """Return end-to-end budgets, one per device.

    Raises:
        UsageError: another number of them, or one that is no milliseconds above 0.
    """
    given = as_tuple(budgets_ms)
    if given is None:
        raise UsageError(f"budgets_ms={shown(budgets_ms)}: expected a list of milliseconds, one for each device")
    values = [number("budgets_ms", each) for each in given]
    if len(values) != devices:
        raise UsageError(f"budgets_ms={shown(budgets_ms)}: expected one for each of {devices} devices")
    for value in values:
        if not value > 0.0:
            raise UsageError(f"budgets_ms={shown(budgets_ms)}: expected milliseconds above 0, for example 4.5")
    return values
