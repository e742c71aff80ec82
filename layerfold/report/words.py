"""Numbers as people read them, and names as pictures and pages can hold them."""

from __future__ import annotations

import html
from collections.abc import Iterable

from layerfold.terminal import printable

NOTHING = "–"
"""Shown where something was not measured."""


def markup_text(text: str) -> str:
    """Return ``text`` for HTML and SVG: quotes and angle brackets escaped, and what XML has no place for."""
    return html.escape(printable(text))


def picture_text(text: str) -> str:
    """Return ``text`` for a picture of matplotlib's: what stands between dollar signs is no formula there."""
    return printable(text).replace("$", r"\$")


def ms_text(value_ms: float | None) -> str:
    """Return milliseconds with about three significant digits: ``0.0812 ms``, ``1.23 ms``, ``45.7 ms``."""
    if value_ms is None:
        return NOTHING
    magnitude = abs(value_ms)
    decimals = 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3 if magnitude >= 0.1 else 4
    return f"{value_ms:.{0 if magnitude >= 1000 else decimals}f} ms"


def interval_text(low_ms: float | None, high_ms: float | None) -> str:
    """Return ``1.20–1.25``: the ends of an interval, without the unit."""
    if low_ms is None or high_ms is None:
        return ""
    decimals = len(ms_text(high_ms).removesuffix(" ms").partition(".")[2])
    return f"{low_ms:.{decimals}f}–{high_ms:.{decimals}f}"


def percent_text(value_pct: float | None) -> str:
    """Return ``97.8 %``."""
    return NOTHING if value_pct is None else f"{value_pct:.1f} %"


def points_text(change: float) -> str:
    """Return a change in points with its sign: ``−0.4``, ``+0.2``, ``±0.0``."""
    rounded = round(change, 1)
    return f"±{0.0:.1f}" if rounded == 0 else f"{'+' if rounded > 0 else '−'}{abs(rounded):.1f}"


def signed_percent_text(change_pct: float) -> str:
    """Return a relative change with its sign: ``+1.2 %``, ``−0.4 %``."""
    return f"{points_text(change_pct)} %"


def count_text(count: int) -> str:
    """Return a large count with three significant digits: ``5.10 k``, ``2.22 M``, ``312 M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return str(count)


def share_text(share: float) -> str:
    """Return a share of 1 in per cent: ``66.5 %``, ``0 %``; what is above 0 but rounds to it is ``< 0.1 %``."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.0f} %" if share in (0, 1) else f"{100 * share:.1f} %"


def positions_text(positions: Iterable[int]) -> str:
    """Return whole numbers as a list in which three or more in a row are a range: ``2, 5..9, 12``."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def large_text(number: int) -> str:
    """Return a count that may be astronomic: ``1,024``, ``about 1.7 × 10^16``."""
    if number < 10**6:
        return f"{number:,}"
    exponent = len(str(number)) - 1
    tenths = (number + 5 * 10 ** (exponent - 2)) // 10 ** (exponent - 1)
    if tenths == 100:
        exponent, tenths = exponent + 1, 10
    return f"about {tenths / 10:.1f} × 10^{exponent}"


def duration_text(seconds: float) -> str:
    """Return ``0.4 s``, ``12 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def speedup_text(before_ms: float, after_ms: float) -> str:
    """Return ``1.42×``."""
    return f"{before_ms / after_ms:.2f}×"
