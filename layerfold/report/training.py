"""A training run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.report.canvas import BLUE, GREEN, GREY, ORANGE, new_figure, save_figure
from layerfold.report.words import picture_text

if TYPE_CHECKING:
    from layerfold.finetune import EpochRow


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
    from matplotlib.ticker import MaxNLocator

    panels: list[tuple[str, list[tuple[str, str, str]]]] = [
        ("loss", [("train", "train_loss", BLUE), ("holdout", "holdout_loss", ORANGE)]),
        ("holdout accuracy, %", [("", "holdout_accuracy_pct", GREEN)]),
        ("agreement with teacher, %", [("", "holdout_agreement_pct", GREEN)]),
        ("learning rate", [("", "learning_rate", GREY)]),
    ]
    shown = [(label, [line for line in lines if _points(history, line[1])]) for label, lines in panels]
    shown = [panel for panel in shown if panel[1]]
    figure = new_figure(7, 1 + 2 * len(shown))
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (label, lines) in zip(axes, shown, strict=True):
        for name, field, colour in lines:
            epochs, values = zip(*_points(history, field), strict=True)
            panel.plot(epochs, values, color=colour, marker="o" if len(epochs) < 40 else "", markersize=3.5, label=name)
        if len(lines) > 1:
            panel.legend(frameon=False)
        if kept_epoch is not None:
            panel.axvline(kept_epoch, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    axes[-1].set_xlabel("epoch" if kept_epoch is None else f"epoch (dotted: {kept_epoch}, whose weights are kept)")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        figure.suptitle(picture_text(title), fontsize=11)
    return save_figure(figure, path, dpi=130)


def _points(history: Sequence[EpochRow], field: str) -> list[tuple[int, Any]]:
    return [(row.epoch, getattr(row, field)) for row in history if getattr(row, field) is not None]
