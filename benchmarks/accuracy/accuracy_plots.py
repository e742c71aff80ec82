"""Draw the picture of docs/accuracy.md, and fill in its table, from the record of accuracy_cifar10.py.

python benchmarks/accuracy/accuracy_plots.py
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

PAGE = ROOT / "docs" / "accuracy.md"
_STYLES = {
    "layerfold": ("D", "#0072b2"),
    "compress": ("d", "#7fb8d8"),
    "paper": ("o", "#e69f00"),
    "uniform": ("s", "#8d97a3"),
    "global pruning": ("^", "#009e73"),
    "pruning": ("v", "#56b4e9"),
    "dsp": ("*", "#cc79a7"),
}
"""Marker and colour, by way."""


def draw(results: dict[str, Any]) -> None:
    """Draw accuracy after finetuning against measured speed-up, a panel per network."""
    figure, every = new_axes(len(results))
    for axes, (network, found) in zip(every, results.items(), strict=True):
        axes.axhline(found["original_accuracy_pct"], color="#8d97a3", linestyle="--", linewidth=1)
        axes.annotate(
            "original",
            (0.99, found["original_accuracy_pct"]),
            xytext=(0, 3),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="#5b6672",
            ha="right",
        )
        rows = [row for row in (*found["rows"], *found["published"]) if "accuracy_pct" in row]
        for way, (marker, colour) in _STYLES.items():
            points = sorted((row["measured_speedup"], row["accuracy_pct"]) for row in rows if row["way"] == way)
            axes.plot(
                *(zip(*points, strict=True) if points else ((), ())),
                marker=marker,
                color=colour,
                linewidth=1,
                label=way,
            )
        axes.set_title(_title(network, found), loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("measured speed-up")
    every[0].set_ylabel("test accuracy after finetuning (%)")
    shown = {
        row["way"]
        for found in results.values()
        for row in (*found["rows"], *found["published"])
        if "accuracy_pct" in row
    }
    legend = [
        (handle, label) for handle, label in zip(*every[0].get_legend_handles_labels(), strict=True) if label in shown
    ]
    figure.legend(*zip(*legend, strict=True), frameon=False, fontsize=8.5, loc="outside lower center", ncols=6)
    figure.savefig(IMAGES / "accuracy-cifar10.png", dpi=100)


def rows_of(results: dict[str, Any]) -> list[str]:
    """Return the table of every way and budget."""
    rows = []
    for name, found in results.items():
        name = _title(name, found)
        rows.append([name, "original", "", "1.000x", f"{found['original_accuracy_pct']:.2f} %"])
        for row in found["rows"]:
            cells = [f"not reached: at most {row['most']:.2f}x", ""] if not row["reached"] else _cells(row)
            if len(row.get("accuracies_pct", ())) > 1:
                cells[1] += f" ({len(row['accuracies_pct'])} seeds)"
            rows.append([name, row["way"], f"{row['speedup_asked']:g}x", *cells])
        rows += [[name, f"published DSP, `{row['checkpoint']}`", "", *_cells(row)] for row in found["published"]]
    return table_of(["network", "way", "asked", "measured", "accuracy"], rows)


def _title(name: str, found: dict[str, Any]) -> str:
    """Return a network's name, and what it was measured on where that is no CPU."""
    device = found["provenance"]["device"].partition(",")[0]
    return name if found["provenance"]["options"]["device"] == "cpu" else f"{name} on {device}"


def _cells(row: dict[str, Any]) -> list[str]:
    return [f"{row['measured_speedup']:.3f}x", f"{row['accuracy_pct']:.2f} %"]


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    results = json.loads((RESULTS / "accuracy_cifar10.json").read_text())["results"]
    draw(results)
    fill_in(PAGE, "accuracy", rows_of(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
