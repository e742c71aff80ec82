"""A training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.files import replacing
from layerfold.report.words import picture_text

if TYPE_CHECKING:
    from layerfold.finetune import EpochRow

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#e69f00", "#009e73", "#8d97a3"


def training_png(
    history: Sequence[EpochRow], path: str | Path, *, kept_epoch: int | None = None, title: str = ""
) -> Path:
    """Plot loss, holdout accuracy and learning rate over the epochs, below each other, as a PNG file.

    Args:
        history: a row per epoch.
        path: where to write.
        kept_epoch: marked by a line, if given.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[str, list[tuple[str, str, str]]]] = [
        ("loss", [("train", "train_loss", _BLUE), ("holdout", "holdout_loss", _ORANGE)]),
        ("holdout accuracy, %", [("", "holdout_accuracy_pct", _GREEN)]),
        ("agreement with teacher, %", [("", "holdout_agreement_pct", _GREEN)]),
        ("learning rate", [("", "learning_rate", _GREY)]),
    ]
    shown = [(label, [line for line in lines if _points(history, line[1])]) for label, lines in panels]
    shown = [panel for panel in shown if panel[1]]
    figure = Figure(figsize=(7, 1 + 2 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, lines) in zip(axes, shown, strict=True):
        for name, field, colour in lines:
            epochs, values = zip(*_points(history, field), strict=True)
            panel.plot(epochs, values, color=colour, marker="o" if len(epochs) < 40 else "", markersize=3.5, label=name)
        if len(lines) > 1:
            panel.legend(frameon=False)
        if kept_epoch is not None:
            panel.axvline(kept_epoch, color=_GREY, linewidth=0.8, linestyle=":")
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    axes[-1].set_xlabel("epoch" if kept_epoch is None else f"epoch (dotted: {kept_epoch}, whose weights are kept)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        figure.suptitle(picture_text(title), fontsize=11)
    target = Path(path)
    with replacing(target) as partial:
        figure.savefig(partial, dpi=130)
    return target


def _points(history: Sequence[EpochRow], field: str) -> list[tuple[int, Any]]:
    return [(row.epoch, getattr(row, field)) for row in history if getattr(row, field) is not None]
