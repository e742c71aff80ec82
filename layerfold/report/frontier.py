"""The frontier as a picture: what each latency buys, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from layerfold.report.canvas import BLUE, GREEN, GREY, INK, ORANGE, RED, dress_latency_axes, new_figure, save_figure
from layerfold.report.latency_plots import add_share_axis
from layerfold.report.words import ms_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
"""(latency_ms, importance)."""


@dataclass(frozen=True, kw_only=True)
class MeasuredPoint:
    """A plan that was built and measured.

    Attributes:
        predicted_ms: what the tables promised.
        measured_ms, low_ms, high_ms: median and 95 % interval.
        importance: predicted importance of the plan.
        is_within: whether it meets the budget; None where there is none.
    """

    predicted_ms: float
    measured_ms: float
    low_ms: float
    high_ms: float
    importance: float
    is_within: bool | None = None


# Nine parameters: each is a part of the picture that may be left out, and no other function hands them on.
def frontier_png(
    points: Sequence[Point],
    path: str | Path,
    *,
    original: Point | None = None,
    budget_ms: float | None = None,
    chosen: Point | None = None,
    measured: Sequence[MeasuredPoint] = (),
    least: Point | None = None,
    title: str = "",
    importance_label: str = "importance (points, higher is better)",
) -> Path:
    """Plot latency against importance for every Pareto-optimal plan, as a PNG file.

    Args:
        points: the frontier, predicted end to end.
        original: the unmodified network, measured latency and importance 0.
        budget_ms: the budget, drawn as a line; what lies beyond is shaded.
        chosen: the plan taken, as predicted.
        measured: plans that were built and measured, with their intervals.
        least: the fastest plan.
        title: the heading; none where it is empty.

    Returns:
        ``path``.
    """
    figure = new_figure(8.6, 4.8, dpi=160, facecolor="white")
    axes = figure.add_subplot()
    frontier = sorted(points)
    axes.step([p[0] for p in frontier], [p[1] for p in frontier], where="post", color=BLUE, linewidth=1.4, alpha=0.75)
    size = 16 if len(frontier) < 80 else 6
    label = f"{len(frontier)} Pareto-optimal plans, predicted"
    axes.scatter([p[0] for p in frontier], [p[1] for p in frontier], s=size, color=BLUE, label=label, zorder=3)
    if original is not None:
        add_share_axis(axes, original[0])
        axes.scatter(*original, marker="s", s=60, color=INK, label="original, measured", zorder=5)
    if least is not None and least != chosen:
        axes.scatter(*least, marker="<", s=60, facecolor="white", edgecolor=BLUE, label="fastest plan", zorder=4)
    _draw_measured(axes, measured)
    if chosen is not None:
        axes.scatter(
            *chosen,
            marker="o",
            s=120,
            facecolor="none",
            edgecolor=GREEN,
            linewidth=2,
            label="chosen, predicted",
            zorder=6,
        )
    if budget_ms is not None:
        _draw_budget(axes, budget_ms)
    linear = _linear_range([p[1] for p in frontier], chosen)
    if linear is not None:
        axes.set_yscale("symlog", linthresh=linear, linscale=2.0, base=10)
        values = [p[1] for p in (*frontier, *([original] if original else []))]
        margin = 0.12 * linear
        axes.set_ylim(min(min(values) * 1.6, -margin), max(max(values) * 1.6, 0.0) + margin)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        importance_label += f"\nlogarithmic beyond ±{linear:g}"
    axes.set_ylabel(importance_label)
    dress_latency_axes(axes, title)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center", ncols=3)
    return save_figure(figure, path, format="png")


def _linear_range(importances: Sequence[float], chosen: Point | None) -> float | None:
    """Return up to where the axis should be linear, or None where a linear axis shows everything.

    The fastest plans may be hundreds of points worse than the one chosen; on a linear axis nobody could tell the
    good ones apart.
    """
    if not importances:
        return None
    worst = max(abs(value) for value in importances)
    near = abs(chosen[1]) if chosen else float(median(abs(value) for value in importances))
    # A plan that costs nothing would ask for an axis that is linear nowhere.
    near = max(near, worst / 300, 1e-9)
    power = 10.0 ** math.ceil(math.log10(near))
    return power if worst > 10 * power else None


def _draw_measured(axes: Axes, measured: Sequence[MeasuredPoint]) -> None:
    """Draw each measured plan with its interval, and a thin line from what was predicted for it."""
    labelled = set()
    for point in measured:
        is_over = point.is_within is False
        label = "measured, over the budget" if is_over else "measured, 95 % interval"
        colour, marker = (RED, "X") if is_over else (GREEN, "D")
        axes.plot([point.predicted_ms, point.measured_ms], [point.importance] * 2, color=GREY, linewidth=0.9, zorder=4)
        axes.errorbar(
            point.measured_ms,
            point.importance,
            xerr=[[max(point.measured_ms - point.low_ms, 0.0)], [max(point.high_ms - point.measured_ms, 0.0)]],
            fmt=marker,
            markersize=7,
            color=colour,
            capsize=3,
            label=None if label in labelled else label,
            zorder=6,
        )
        labelled.add(label)


def _draw_budget(axes: Axes, budget_ms: float) -> None:
    left, right = axes.get_xlim()
    left, right = min(left, budget_ms * 0.98), max(right, budget_ms * 1.02)
    axes.axvspan(budget_ms, right, color=ORANGE, alpha=0.10, zorder=0)
    axes.axvline(budget_ms, color=ORANGE, linewidth=1.6, linestyle="--", zorder=2)
    axes.annotate(
        f"budget {ms_text(budget_ms)}",
        xy=(budget_ms, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=9,
        color="#8a5a00",
    )
    axes.set_xlim(left, right)
