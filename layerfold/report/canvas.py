"""What the pictures drawn with matplotlib share: colours, a figure, the look of the axes, the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.errors import UsageError
from layerfold.files import replacing
from layerfold.report.words import picture_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, PALE = "#1c2430", "#8d97a3", "#dfe4ea"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"


def new_figure(width: float, height: float, **how: Any) -> Figure:
    """Return an empty figure of that size in inches.

    Not through pyplot: its backends and global state are the caller's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", **how)
    FigureCanvasAgg(figure)
    return figure


def dress_latency_axes(axes: Axes, title: str) -> None:
    """Give axes whose horizontal one is latency their name, heading, grid and frame."""
    axes.set_xlabel("latency of one forward pass (ms)")
    axes.set_title(picture_text(title), loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.grid(color="#e5e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def check_picture(path: str | Path) -> None:
    """Raise UsageError for a name that does not say which kind of picture it is to be."""
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"path={str(path)!r}: expected a name that ends in .png, .svg or .pdf")


def save_figure(figure: Figure, path: str | Path, **how: Any) -> Path:
    """Write a figure, all or nothing, and return its path."""
    with replacing(path) as partial:
        figure.savefig(partial, **how)
    return Path(path)
