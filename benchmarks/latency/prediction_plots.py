"""Draw the pictures of docs/prediction.md, and fill in its tables, from the records of prediction.py and budgets.py.

python benchmarks/latency/prediction_plots.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from latency_networks import WORK
from pages import IMAGES, fill_in, table_of
from record import RESULTS, ROOT

import layerfold as lf
from layerfold.report.latency_plots import latency_heatmap_png, points_of, prediction_png, time_png

_KINDS = {
    "segments alone": ("segments alone", "#e69f00", "o"),
    "... with a line through plans": ("segments alone, line", "#e69f00", "^"),
    "... fitted to plans": ("segments alone, fitted", "#e69f00", "s"),
    "each segment in a whole network": ("each segment", "#d55e00", "D"),
    "between its neighbours": ("between", "#009e73", "o"),
    "fitted to 5, 10, ... plans (default: the last)": ("fitted", "#0072b2", "o-"),
}
"""By kind of way: how its names begin, colour, marker."""


def draw_prediction(name: str, found: dict[str, Any], path: Path) -> None:
    """Draw one network's held-out plans, predicted by the fitted table, before the segments alone."""
    fitted, alone = found["ways"]["fitted"], found["ways"]["segments alone"]
    truth = [(each["ratio"], max((each["high"] - each["low"]) / 3.92, 5e-4)) for each in found["held_out"]]
    original_ms = found["original_ms"]
    points = points_of(
        [(p, s, *t) for p, s, t in zip(fitted["predicted"], fitted["deviations"], truth, strict=True)], original_ms
    )
    others = [(original_ms * p, original_ms * t[0]) for p, t in zip(alone["predicted"], truth, strict=True)]
    prediction_png(
        points,
        path,
        title=f"{name}: plans that no fit has seen",
        label="fitted to measured plans",
        others=others,
        others_label=f"segments alone, error {alone['median_pct']:.0f} % median, {alone['max_pct']:.0f} % at most",
    )


def draw_cost(results: dict[str, Any], path: Path) -> None:
    """Draw each way's median error against the seconds that its measurements take."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {name: found for name, found in results.items() if "between its neighbours" in found["ways"]}
    figure = Figure(figsize=(5.4 * len(shown), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, found) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for kind, (starts, colour, marker) in _KINDS.items():
            points = [
                (each["seconds"], each["median_pct"]) for way, each in found["ways"].items() if is_of_kind(way, starts)
            ]
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=7, linewidth=1, label=kind)
        axes.axhline(found["repeat"]["median_pct"], color="#8d97a3", linestyle="--", linewidth=1)
        axes.annotate(
            "the machine itself, measured twice",
            (0.99, found["repeat"]["median_pct"]),
            ha="right",
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=7.5,
            color="#5b6672",
        )
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("seconds of measuring")
        axes.set_ylabel("median error on held-out plans (%)")
        axes.set_ylim(0, None)
        axes.set_xlim(0, 1.1 * max(each["seconds"] for each in found["ways"].values()))
        axes.grid(color="#e5e8ec", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8.5, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)


def is_of_kind(way: str, starts: str) -> bool:
    """Say whether a way's name begins so and no longer beginning fits it better."""
    longer = [other for other, _, _ in _KINDS.values() if len(other) > len(starts) and way.startswith(other)]
    return way.startswith(starts) and not longer and "relative" not in way


def fastest_stops(table: lf.LatencyTable) -> list[int]:
    """Return where merging stops in the plan of least predicted latency."""
    stops = []
    for start, end in table.chains:
        best = {start: (0.0, start)}
        for at in range(start + 1, end + 1):
            into = [each for each in table.entries if each.end == at and each.start in best]
            ways = [(best[each.start][0] + each.latency_ms, each.start) for each in into]
            best[at] = min(ways)
        while end > start:
            stops.append(end)
            end = best[end][1]
    return stops


def prediction_rows(results: dict[str, Any]) -> list[str]:
    """Return the table of docs/prediction.md, one line per network."""

    def cells(each: dict[str, Any]) -> tuple[str, str]:
        return f"{each['median_pct']:.1f} / {each['max_pct']:.1f} %", f"{each['rank']:.3f}"

    head = [
        "network",
        "whole networks timed",
        "segments alone: median / max",
        "rank",
        "fitted: median / max",
        "rank",
        "inside the 95 % interval",
        "the machine twice: median / max",
        "rank",
    ]
    rows = []
    for name, found in results.items():
        fitted = found["ways"]["fitted"]
        rows.append(
            [
                f"{name}, {found['original_ms']:.3g} ms",
                f"{found['plans_fitted']} in {found['plans_s']:.0f} s",
                *cells(found["ways"]["segments alone"]),
                *cells(fitted),
                f"{fitted['inside_95_pct']:.0f} %",
                *cells(found["repeat"]),
            ]
        )
    return table_of(head, rows)


def budget_rows(results: dict[str, Any]) -> list[str]:
    """Return the table of budgets, one line per network."""
    head = ["network", "asked", "measured", "at least", "budget used", "plans timed, verified"]
    rows = []
    for name, speedups in results.items():
        for speedup, found in speedups.items():
            cells = ["out of reach", "", "", ""]
            if found["status"] == "met":
                cells = [
                    f"{1 / found['ratio']:.3f}x",
                    f"{1 / found['ratio_high']:.3f}x",
                    f"{100 * found['used']:.0f} %",
                    f"{found['trials']}, {found['verifications']}",
                ]
            rows.append([name, f"{speedup}x", *cells])
    return table_of(head, rows)


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    results = json.loads((RESULTS / "prediction.json").read_text())["results"]
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, found in results.items():
        draw_prediction(name, found, IMAGES / f"prediction-{name}.png")
        table_path = WORK / f"{name}.csv"
        if name == "mobilenet_v2" and table_path.exists():
            table = lf.LatencyTable.read(table_path)
            latency_heatmap_png(table, IMAGES / f"heatmap-{name}.png", title=f"{name}: the fitted table")
            time_png(table, fastest_stops(table), IMAGES / f"time-{name}.png", title=f"{name}: the fastest plan")
    if any("between its neighbours" in found["ways"] for found in results.values()):
        draw_cost(results, IMAGES / "prediction-cost.png")
    page = ROOT / "docs" / "prediction.md"
    fill_in(page, "results", prediction_rows(results))
    budgets = RESULTS / "budgets.json"
    if budgets.exists():
        fill_in(page, "budgets", budget_rows(json.loads(budgets.read_text())["results"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
