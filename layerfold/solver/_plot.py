"""The picture of a frontier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from layerfold.errors import OptionalDependencyError
from layerfold.files import replacing
from layerfold.solver._solution import Solution
from layerfold.terminal import printable

if TYPE_CHECKING:
    from layerfold.solver._frontier import Frontier

_LINE, _FILL, _BUDGET, _CHOSEN, _ORIGINAL = "#1f5aa6", "#c9dcf2", "#7a7a7a", "#c8401d", "#222222"


def plot_frontier(
    frontier: Frontier, path: Path, *, budget_ms: float | None = None, chosen: Solution | None = None, title: str = ""
) -> None:
    """Draw latency against importance, with the original, the budget and the chosen point."""
    try:
        import matplotlib
    except ImportError:
        raise OptionalDependencyError(f"{path}: drawing needs matplotlib; pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    latency_ms, importance = frontier.latencies_ms[:, 0], frontier.importances
    axes.step(latency_ms, importance, where="post", color=_LINE, linewidth=1.6, label="frontier", zorder=3)
    axes.plot(latency_ms, importance, ".", color=_LINE, markersize=3 if len(frontier) > 60 else 5, zorder=3)
    axes.fill_between(
        latency_ms, importance, float(importance.min()), step="post", color=_FILL, alpha=0.35, linewidth=0, zorder=1
    )
    original = f"original, {frontier.original_ms:.4g} ms"
    if frontier.alpha:  # normalised importances are not relative to the original
        axes.axvline(frontier.original_ms, color=_ORIGINAL, linewidth=1.2, label=original)
    else:
        axes.plot(frontier.original_ms, 0.0, "D", color=_ORIGINAL, markersize=7, zorder=4, label=original)
    if budget_ms is not None:
        axes.axvline(budget_ms, color=_BUDGET, linestyle="--", linewidth=1.2, label=f"budget, {budget_ms:.4g} ms")
    if chosen is not None and chosen.predicted_ms is not None and chosen.importance is not None:
        at_ms = chosen.costs.get("latency_at_risk_ms", chosen.predicted_ms)
        speedup = frontier.original_ms / at_ms if at_ms else math.inf
        axes.plot(
            at_ms,
            chosen.importance,
            "o",
            color=_CHOSEN,
            markersize=9,
            zorder=5,
            label=f"chosen, {at_ms:.4g} ms ({speedup:.2f}x)",
        )
    axes.set_xlabel("predicted latency (ms)")
    axes.set_ylabel("importance (points)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(printable(title), fontsize=11, loc="left", parse_math=False)
    with replacing(path) as partial:
        figure.savefig(partial)
    pyplot.close(figure)
