"""Settings that are numbers: of the right type and within their bounds, or one line that says so."""

from __future__ import annotations

import math

from layerfold.errors import UsageError


def check_whole(name: str, value: object, *, least: int, most: int = 10**9, may_be_none: bool = False) -> None:
    """Refuse what is no whole number from ``least`` to ``most``.

    Raises:
        UsageError: names the setting, its value and the bounds.
    """
    if value is None and may_be_none:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={_shown(value)}: must be a whole number of at least {least}")
    if value < least:
        raise UsageError(f"{name}={_shown(value)}: must be at least {least}")
    if value > most:
        raise UsageError(f"{name}={_shown(value)}: must be at most {most}")


def check_number(
    name: str, value: object, *, least: float | None = None, above: float | None = None, most: float = math.inf,
    may_be_none: bool = False,
) -> None:
    """Refuse what is no finite number of at least ``least``, or above ``above``, and at most ``most``.

    Raises:
        UsageError: names the setting, its value and the bound.
    """
    if value is None and may_be_none:
        return
    rule = f"at least {least:g}" if least is not None else f"above {above:g}" if above is not None else "a number"
    rule += f" and at most {most:g}" if math.isfinite(most) else ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name}={_shown(value)}: must be a number{'' if rule == 'a number' else ', ' + rule}")
    # An integer beyond a float's range compares well, and cannot be converted.
    is_finite = abs(value) <= 1e300
    fits = (least is None or value >= least) and (above is None or value > above) and value <= most
    if not (is_finite and fits):
        raise UsageError(f"{name}={_shown(value)}: must be {rule}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}={_shown(value)}: must be True or False")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return f"{'-' if value < 0 else ''}an integer of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
