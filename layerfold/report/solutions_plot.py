"""Several networks of one device as a picture: what each is worth against how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from layerfold.errors import UsageError
from layerfold.report.canvas import GREY, INK, check_picture, dress_latency_axes, new_figure, save_figure
from layerfold.report.words import picture_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#7a5195", "#8a6d3b")
_MARKERS = "oD^vPX*p"
_PREDICTED = "hollow: predicted"


@dataclass(frozen=True, kw_only=True)
class ComparedPoint:
    """One network.

    Attributes:
        name: as shown.
        measured_ms, low_ms, high_ms: median and 95 % interval.
        predicted_ms: None if unknown.
        accuracy_pct, agreement_pct, importance: None if unknown.
        speedup: over the first network.
    """

    name: str
    measured_ms: float
    low_ms: float
    high_ms: float
    predicted_ms: float | None = None
    accuracy_pct: float | None = None
    agreement_pct: float | None = None
    importance: float | None = None
    speedup: float = 1.0


def comparison_plot(points: Sequence[ComparedPoint], path: str | Path, *, title: str = "") -> Path:
    """Draw accuracy against measured latency, with intervals; a hollow mark is the predicted latency.

    Where no network but the first has an accuracy, agreement or importance takes its place, and latency alone where
    these are unknown as well. Networks without the value stand below the axis' floor, at their latency.

    Args:
        points: at least one; the first is the original.
        path: a .png, .svg or .pdf file.
        title: the heading; none where it is empty.

    Raises:
        UsageError: no points, or another kind of file.
    """
    check_picture(path)
    if not points:
        raise UsageError("points is empty; give at least one network")
    values, label = _values_of(points)
    height = 4.8 if values else 1.4 + 0.42 * len(points)
    figure = new_figure(8.6, height, dpi=160, facecolor="white")
    axes = figure.add_subplot()
    if values:
        _draw_values(axes, points, values)
        axes.set_ylabel(label)
        # In the order of the networks; left to itself the legend puts lines before marks with intervals.
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: labels[index] == _PREDICTED)
        figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            frameon=False,
            fontsize=9,
            loc="outside lower center",
            ncols=2 if len(points) > 3 else 3,
        )
    else:
        _draw_rows(axes, points)
    dress_latency_axes(axes, title)
    return save_figure(figure, path)


def _values_of(points: Sequence[ComparedPoint]) -> tuple[list[float | None], str]:
    """Return what the upright axis shows, and its name; nothing where no solution has a value."""
    for values, label in (
        ([each.accuracy_pct for each in points], "accuracy (%)"),
        ([each.agreement_pct for each in points], "agreement with the original (%)"),
        ([each.importance for each in points], "importance (points, higher is better)"),
    ):
        if any(value is not None for value in values[1:]):
            return values, label
    return [], ""


def _draw_values(axes: Axes, points: Sequence[ComparedPoint], values: Sequence[float | None]) -> None:
    given = [value for value in values if value is not None]
    span = max(given) - min(given) or 1.0
    floor = min(given) - 0.16 * span
    has_missing = any(value is None for value in values)
    for index, (point, value) in enumerate(zip(points, values, strict=True)):
        colour, marker = _style(index)
        at = floor if value is None else value
        said = f"{picture_text(point.name)}: {point.speedup:.2f}×"
        if value is not None:
            said += f", {value:.1f}"
        axes.errorbar(
            point.measured_ms,
            at,
            xerr=_interval(point),
            fmt=marker,
            markersize=8,
            color=colour,
            capsize=3,
            zorder=4,
            label=said,
            alpha=1.0 if value is not None else 0.6,
        )
        if point.predicted_ms is not None:
            axes.plot([point.predicted_ms, point.measured_ms], [at, at], color=GREY, linewidth=0.9, zorder=2)
            axes.plot(
                point.predicted_ms, at, marker, markersize=7, markerfacecolor="white", markeredgecolor=colour, zorder=3
            )
    if any(point.predicted_ms is not None for point in points):
        axes.plot([], [], "o", markersize=7, markerfacecolor="white", markeredgecolor=GREY, label=_PREDICTED)
    if has_missing:
        axes.axhline(floor + 0.06 * span, color=GREY, linewidth=0.8, linestyle=":")
        axes.text(
            0.995,
            floor + 0.065 * span,
            "below: value unknown",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
            color=GREY,
        )
    axes.set_ylim(floor - 0.06 * span if has_missing else min(given) - 0.08 * span, max(given) + 0.08 * span)
    if has_missing:
        axes.set_yticks([tick for tick in axes.get_yticks() if floor + 0.06 * span < tick <= max(given) + 0.08 * span])


def _draw_rows(axes: Axes, points: Sequence[ComparedPoint]) -> None:
    """Draw latency alone: a row per network."""
    for index, point in enumerate(points):
        colour, marker = _style(index)
        row = len(points) - index
        axes.errorbar(point.measured_ms, row, xerr=_interval(point), fmt=marker, markersize=8, color=colour, capsize=3)
        if point.predicted_ms is not None:
            axes.plot(point.predicted_ms, row, marker, markersize=7, markerfacecolor="none", markeredgecolor=colour)
        axes.annotate(
            f"{point.speedup:.2f}×",
            (point.measured_ms, row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    axes.set_yticks(
        [len(points) - index for index in range(len(points))], [picture_text(point.name) for point in points]
    )
    axes.set_ylim(0.4, len(points) + 0.8)


def _style(index: int) -> tuple[str, str]:
    if index == 0:
        return INK, "s"
    return _COLOURS[(index - 1) % len(_COLOURS)], _MARKERS[(index - 1) % len(_MARKERS)]


def _interval(point: ComparedPoint) -> list[list[float]]:
    return [[max(point.measured_ms - point.low_ms, 0.0)], [max(point.high_ms - point.measured_ms, 0.0)]]
