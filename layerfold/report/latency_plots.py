"""Latency as pictures: the table as a heat map, predicted against measured, where the time goes.

Numbers come in as plain values and tables, so that these pictures need neither torch nor a network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerfold.errors import TableError, UsageError
from layerfold.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, PALE, check_picture, new_figure, save_figure
from layerfold.report.words import ms_text, picture_text
from layerfold.tables import LatencyTable
from layerfold.tables.kernel import SegmentKey
from layerfold.tables.latency import HasMergePositions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 110
_MOST_RATIO = 4.0
_MOST_POSITIONS = 2048


@dataclass(frozen=True, kw_only=True)
class PredictedPoint:
    """One plan: what was predicted and what was measured, both with 95 % intervals, ms.

    Attributes:
        predicted_ms, predicted_low_ms, predicted_high_ms: the prediction.
        measured_ms, measured_low_ms, measured_high_ms: the measurement.
    """

    predicted_ms: float
    predicted_low_ms: float
    predicted_high_ms: float
    measured_ms: float
    measured_low_ms: float
    measured_high_ms: float


def latency_heatmap_png(table: LatencyTable, path: str | Path, *, title: str = "") -> Path:
    """Draw every entry of a latency table that keeps its layers, start by end: its latency, and what merging does.

    Left, milliseconds on a logarithmic scale. Right, latency relative to the layers that the segment replaces:
    blue is faster merged, red slower, cut off at four times either way.

    Args:
        table: the table.
        path: a .png, .svg or .pdf file.
        title: the heading.

    Raises:
        TableError: more positions than a picture can show.
    """
    first, size = min(start for start, _ in table.chains), max(end for _, end in table.chains) + 1
    if size - first > _MOST_POSITIONS:
        raise TableError(
            f"{table.source}: spans the positions {first}..{size - 1}, and a picture shows at most {_MOST_POSITIONS}; "
            "plot a part of the table"
        )
    latency_ms, ratio = (np.full((size - first, size - first), np.nan) for _ in range(2))
    scale = table.provenance.scale
    for entry in table.entries:
        if entry.change is not None:
            continue
        latency_ms[entry.start - first, entry.end - first] = scale * entry.latency_ms
        layers = [(m, m + 1) for m in range(entry.start, entry.end)]
        if len(layers) > 1 and all(each in table for each in layers):
            ratio[entry.start - first, entry.end - first] = entry.latency_ms / table.sum_ms(layers)
    import matplotlib.colors as colors

    figure, (left, right) = _figure(1, 2, (11.5, 5.2))
    edges = np.arange(first, size + 1)
    image = left.pcolormesh(edges, edges, latency_ms, norm=colors.LogNorm(), cmap="viridis")
    figure.colorbar(image, ax=left, label="ms inside the network", shrink=0.85)
    norm = colors.LogNorm(1 / _MOST_RATIO, _MOST_RATIO)
    image = right.pcolormesh(edges, edges, np.clip(ratio, 1 / _MOST_RATIO, _MOST_RATIO), norm=norm, cmap="RdBu_r")
    bar = figure.colorbar(image, ax=right, label="latency relative to the layers replaced", shrink=0.85)
    ticks = [0.25, 0.5, 1, 2, 4]
    bar.set_ticks(ticks, labels=["≤ ¼", "½", "1", "2", "≥ 4"])
    bar.ax.minorticks_off()
    faster = int(np.nansum(ratio < 1))
    left.set_title("latency of each segment", loc="left", fontsize=10, color=INK)
    right.set_title(
        f"{faster} of {int(np.isfinite(ratio).sum())} merged segments are faster than what they replace",
        loc="left",
        fontsize=10,
        color=INK,
    )
    for axes in (left, right):
        for start, end in table.chains:
            axes.plot([start, end + 1, end + 1], [start, start, end + 1], color=GREY, linewidth=0.8)
        axes.set_aspect("equal")
        axes.set_xlim(first, size)
        axes.set_ylim(size, first)
        axes.set_xlabel("end position")
        axes.set_ylabel("start position")
    return _save(figure, path, title)


def prediction_png(
    points: Sequence[PredictedPoint],
    path: str | Path,
    *,
    title: str = "",
    label: str = "",
    others: Sequence[tuple[float, float]] = (),
    others_label: str = "",
) -> Path:
    """Draw predicted against measured latency, with intervals, the line where both agree and 5 % either side.

    Args:
        points: at least one plan.
        path: a .png, .svg or .pdf file.
        title, label: heading, and what the points are.
        others: (predicted, measured) of another way to predict, drawn pale behind.
        others_label: its name.
    """
    if not points:
        raise UsageError("points is empty; a table that was fitted to measured plans has some (--method plans)")
    measured = np.array([each.measured_ms for each in points])
    predicted = np.array([each.predicted_ms for each in points])
    error = np.abs(predicted / measured - 1)
    figure, (axes,) = _figure(1, 1, (6.2, 5.8))
    values = [*measured, *predicted, *itertools.chain(*others)]
    low, high = min(values) * 0.96, max(values) * 1.04
    line = np.array([low, high])
    axes.fill_between(line, 0.95 * line, 1.05 * line, color=PALE, zorder=0, label="5 % either side")
    axes.plot(line, line, color=GREY, linewidth=1, zorder=1)
    if others:
        axes.scatter(
            [each[1] for each in others],
            [each[0] for each in others],
            s=18,
            color=ORANGE,
            marker="x",
            linewidth=1.2,
            label=others_label,
            zorder=2,
        )
    axes.errorbar(
        measured,
        predicted,
        xerr=_bars(measured, [e.measured_low_ms for e in points], [e.measured_high_ms for e in points]),
        yerr=_bars(predicted, [e.predicted_low_ms for e in points], [e.predicted_high_ms for e in points]),
        fmt="o",
        markersize=4,
        color=BLUE,
        ecolor=BLUE,
        elinewidth=0.7,
        alpha=0.85,
        zorder=3,
        label=f"{label}: {len(points)} plans, error {100 * np.median(error):.1f} % median, "
        f"{100 * error.max():.1f} % at most".lstrip(": "),
    )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("measured (ms)")
    axes.set_ylabel("predicted (ms)")
    axes.grid(color="#e5e8ec", linewidth=0.7)
    axes.set_axisbelow(True)
    figure.legend(frameon=False, fontsize=8.5, loc="outside lower center")
    return _save(figure, path, title)


def time_png(
    table: LatencyTable,
    solution: HasMergePositions,
    path: str | Path,
    *,
    title: str = "",
    measured_ms: tuple[float, float] | None = None,
    original_ms: float | None = None,
) -> Path:
    """Draw where the time goes before and after: each layer and each segment as wide as it takes long.

    Args:
        table: latencies that add up, and the part outside the chains.
        solution: what is merged and dropped.
        path: a .png, .svg or .pdf file.
        title: the heading.
        measured_ms: (original, merged) as measured, marked by lines.
        original_ms: what the original takes, ms, to which all of the table is set in proportion; None for what the
            table says.
    """
    whole_ms = table.original_ms if original_ms is None else original_ms
    unit = whole_ms / table.original_ms
    singles: list[SegmentKey] = [(m, m + 1) for start, end in table.chains for m in range(start, end)]
    plan = table.keys_of(solution)
    figure, (axes,) = _figure(1, 1, (11.5, 3.6))
    before, after = _draw_row(axes, table, singles, 1.0, unit), _draw_row(axes, table, plan, 0.0, unit)
    for key in plan:
        start, end = key[:2]
        if _is_changed(key):  # what becomes of it
            (a, _), (_, b) = before[start, start + 1], before[end - 1, end]
            c, d = after[key]
            axes.fill([a, b, d, c], [0.8, 0.8, 0.2, 0.2], facecolor="#d9efe8", edgecolor="white", linewidth=1.2)
    totals = whole_ms, unit * table.end_to_end_ms(table.sum_ms(plan))
    names = ("original", "merged")
    axes.set_yticks([1.0, 0.0], labels=[f"{name}\n{ms_text(total)}" for name, total in zip(names, totals, strict=True)])
    for at, value_ms in zip((1.0, 0.0), measured_ms or (), strict=False):
        axes.plot(
            [value_ms, value_ms],
            [at - 0.3, at + 0.3],
            color=INK,
            linewidth=2,
            zorder=5,
            label="measured" if at else None,
        )
    changed = "merged, or layers dropped" if any(len(key) > 2 for key in plan) else "merged segment"
    for colour, name in ((BLUE, "layer of its own"), (GREEN, changed), (GREY, "outside the chains")):
        axes.bar(0, 0, color=colour, label=name)
    axes.set_ylim(-0.4, 1.4)
    axes.set_xlim(0, 1.03 * max(*totals, *(measured_ms or ())))
    axes.set_xlabel("latency of one forward pass (ms)")
    add_share_axis(axes, whole_ms)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=4)
    return _save(figure, path, title)


def add_share_axis(axes: Axes, original_ms: float) -> None:
    """Add an axis above the picture: latency as a share of the original's, which no drift of the machine moves."""

    def share(ms: Any) -> Any:
        return np.asarray(ms) * (100 / original_ms)

    def ms(share: Any) -> Any:
        return np.asarray(share) * (original_ms / 100)

    above = axes.secondary_xaxis("top", functions=(share, ms))
    above.set_xlabel("share of the original (%)", color=GREY, fontsize=9)
    above.tick_params(colors=GREY, labelsize=8)
    above.spines["top"].set_visible(False)


def _draw_row(
    axes: Axes, table: LatencyTable, segments: Sequence[SegmentKey], at: float, unit: float
) -> dict[SegmentKey, tuple[float, float]]:
    """Draw segments side by side from the left, what lies outside the chains last; return each one's span."""
    spans: dict[SegmentKey, tuple[float, float]] = {}
    left, whole_ms = 0.0, unit * table.original_ms
    for key in segments:
        start, end = key[:2]
        width = unit * table.provenance.scale * table.at(key).latency_ms
        is_merged = _is_changed(key)
        axes.barh(
            at,
            width,
            left=left,
            height=0.4,
            color=GREEN if is_merged else BLUE,
            edgecolor="white",
            linewidth=0.6,
            alpha=0.9,
        )
        label = f"{start + 1}–{end}" if end - start > 1 else str(end)
        if width > (0.011 if is_merged else 0.008) * len(label) * whole_ms:
            axes.text(left + width / 2, at, label, ha="center", va="center", fontsize=7, color="white")
        spans[key] = left, left + width
        left += width
    fixed_ms = unit * table.provenance.fixed_ms
    axes.barh(at, fixed_ms, left=left, height=0.4, color=GREY, edgecolor="white", linewidth=0.6)
    return spans


def _is_changed(key: SegmentKey) -> bool:
    """Say whether a segment is of several layers, or without some of its own."""
    return len(key) > 2 or key[1] - key[0] > 1


def _bars(middle: Any, low: Sequence[float], high: Sequence[float]) -> Any:
    return np.maximum([middle - np.asarray(low), np.asarray(high) - middle], 0.0)


def _figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Any, list[Any]]:
    figure = new_figure(*inches)
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def _save(figure: Any, path: str | Path, title: str) -> Path:
    check_picture(path)
    if title:
        figure.suptitle(picture_text(title), fontsize=12, fontweight="bold", color=INK, x=0.01, ha="left")
    return save_figure(figure, path, dpi=_DPI)


def points_of(ratios: Iterable[tuple[float, float, float, float]], original_ms: float) -> list[PredictedPoint]:
    """Return points from (predicted, its deviation, measured, its deviation), all relative to the original."""
    found = []
    for predicted, spread, measured, error in ratios:
        if not all(math.isfinite(value) for value in (predicted, spread, measured, error)):
            continue
        found.append(
            PredictedPoint(
                predicted_ms=original_ms * predicted,
                predicted_low_ms=original_ms * (predicted - 1.96 * spread),
                predicted_high_ms=original_ms * (predicted + 1.96 * spread),
                measured_ms=original_ms * measured,
                measured_low_ms=original_ms * (measured - 1.96 * error),
                measured_high_ms=original_ms * (measured + 1.96 * error),
            )
        )
    return found
