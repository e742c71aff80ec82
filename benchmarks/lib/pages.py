"""Tables and pictures of the documentation that are made from records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import ROOT

IMAGES = ROOT / "docs" / "images"


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, one line per row; the first column to the left, the others to the right."""
    lines = (" ".join(f"| {cell}" if cell else "|" for cell in row) + " |" for row in rows)
    return [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1), *lines]


def fill_in(page: Path, marker: str, table: Sequence[str]) -> None:
    """Replace the table behind the page's line ``<!-- marker -->``."""
    before, comment, after = page.read_text().partition(f"<!-- {marker} -->\n")
    if not comment:
        sys.exit(f"error: {page.name} has no line <!-- {marker} -->")
    lines = after.lstrip("\n").split("\n")
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    page.write_text(before + comment + "\n".join(["", *table, "", *lines[lines[0] == "" :]]))


def new_axes(count: int) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * count, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    every = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in every:
        axes.grid(color="#e5e8ec", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, every
