"""Draw the pictures of docs/dropping.md, and fill in its tables, from the records of drops.py and shorten_cifar10.py.

python benchmarks/latency/drops_plots.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from pages import IMAGES, fill_in, new_axes, table_of
from record import RESULTS, ROOT

PAGE = ROOT / "docs" / "dropping.md"
_WAYS = {
    "merging": ("merging", "#e69f00", "--"),
    "dropping too": ("merging and dropping", "#0072b2", "-"),
}
"""Of ``frontiers``: label, colour, line."""
_MARKERS = {"merging only": "o", "merging and dropping": "D", "search": "^", "uniform removal": "s"}
_COLOURS = {
    "merging only": "#e69f00",
    "merging and dropping": "#0072b2",
    "search": "#009e73",
    "uniform removal": "#8d97a3",
}


def draw_frontiers(results: dict[str, Any], name: str) -> None:
    """Draw importance against speed-up, with and without drops, a panel per network."""
    figure, every = new_axes(len(results))
    for axes, (network, found) in zip(every, results.items(), strict=True):
        for way, (label, colour, line) in _WAYS.items():
            points = sorted(found["frontiers"]["frontier"][way])
            # What a speed-up can have at best is the importance of the next point beyond it.
            axes.plot(*zip(*points, strict=True), line, drawstyle="steps-pre", color=colour, linewidth=1.5, label=label)
        axes.set_xscale("log")
        fastest = points[-1][0]
        ticks = [
            tick for tick in (1, 1.5, 2, 3, 5, 10, 20, 50) if tick <= 1.1 * fastest and (tick != 1.5 or fastest < 20)
        ]
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(network, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("speed-up by the table")
    every[0].set_ylabel("importance")
    every[0].legend(frameon=False, fontsize=8.5, loc="lower left")
    figure.savefig(IMAGES / f"{name}.png", dpi=90)


def draw_accuracies(results: dict[str, Any]) -> None:
    """Draw accuracy after finetuning against measured speed-up, a panel per network."""
    figure, every = new_axes(len(results))
    for axes, (network, found) in zip(every, results.items(), strict=True):
        axes.axhline(found["original_accuracy_pct"], color="#8d97a3", linestyle="--", linewidth=1)
        axes.annotate(
            "original",
            (0.01, found["original_accuracy_pct"]),
            xytext=(0, 3),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="#5b6672",
        )
        for way, marker in _MARKERS.items():
            rows = [row for row in found["rows"] if row["way"] == way and row["status"] == "solved"]
            points = sorted((row["speedup"], row["accuracy_pct"]) for row in rows)
            axes.plot(
                *(zip(*points, strict=True) if points else ((), ())),
                marker=marker,
                color=_COLOURS[way],
                linewidth=1,
                label=way,
            )
        axes.set_title(network, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("measured speed-up")
    every[0].set_ylabel("test accuracy after finetuning (%)")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8.5, loc="outside lower center", ncols=2 * len(every))
    figure.savefig(IMAGES / "shorten-cifar10.png", dpi=100)


def fastest_rows(results: dict[str, Any]) -> list[str]:
    """Return the table of the fastest plans."""
    head = [
        "network",
        "fastest by merging",
        "convs",
        "fastest with drops",
        "convs",
        "layers dropped",
        "budgets: better / worse with drops",
    ]
    rows = []
    for name, found in results.items():
        cells: list[str] = []
        for way in ("merging", "dropping too"):
            each = found[way]
            cells += [
                f"{each['speedup']:.2f}x ({each['speedup_low']:.2f} to {each['speedup_high']:.2f})",
                str(each["convs"]),
            ]
        frontiers = found["frontiers"]
        rows.append(
            [
                f"{name}, {found['merging']['original_ms']:.3g} ms",
                *cells,
                str(found["dropping too"]["dropped"]),
                f"{frontiers['better_with_drops']} / {frontiers['worse_with_drops']} "
                f"of {frontiers['budgets_compared']}",
            ]
        )
    return table_of(head, rows)


def accuracy_rows(results: dict[str, Any]) -> list[str]:
    """Return the table of accuracies at equal budgets."""
    head = ["network", "way", "asked", "predicted", "measured", "accuracy", "convs", "activations"]
    rows = []
    for name, found in results.items():
        rows.append([name, "original", "", "", "1.000x", f"{found['original_accuracy_pct']:.2f} %", "", ""])
        for row in found["rows"]:
            cells = [f"not reached: at most {row.get('reachable_speedup', 0):.2f}x", "", "", "", ""]
            if row["status"] == "solved":
                cells = [
                    f"{found['original_predicted_ms'] / row['predicted_ms']:.3f}x",
                    f"{row['speedup']:.3f}x",
                    f"{row['accuracy_pct']:.2f} %",
                    str(row["num_convs"]),
                    str(row["num_activations"]),
                ]
            rows.append([name, row["way"], f"{row['speedup_asked']:g}x", *cells])
    return table_of(head, rows)


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    IMAGES.mkdir(parents=True, exist_ok=True)
    results = json.loads((RESULTS / "drops.json").read_text())["results"]
    draw_frontiers(results, "drops-frontiers")
    fill_in(PAGE, "fastest", fastest_rows(results))
    record = RESULTS / "shorten_cifar10.json"
    if record.exists():
        results = json.loads(record.read_text())["results"]
        draw_frontiers(results, "drops-frontiers-cifar10")
        draw_accuracies(results)
        fill_in(PAGE, "accuracy", accuracy_rows(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
