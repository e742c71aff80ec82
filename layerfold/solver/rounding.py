"""Numbers in errors that name what can be reached: rounded so that asking for them succeeds."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal


def round_to(value: float, *, up: bool, digits: int = 3) -> str:
    """Return a positive number with few digits that is at least (``up``) or at most ``value``.

    Args:
        value: above 0.
        up: as a latency; else as a speed-up.
        digits: significant ones.
    """
    nearest = f"{value:.{digits}g}"
    if float(nearest) == value or (float(nearest) > value) == up:
        return nearest
    context = Context(prec=digits, rounding=ROUND_CEILING if up else ROUND_FLOOR)
    return f"{float(context.create_decimal(Decimal(value))):.{digits}g}"
