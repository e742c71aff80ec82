"""What a training run tells afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from layerfold.files import JsonObject


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """One epoch.

    Attributes:
        epoch: from 1.
        steps: optimizer steps done by its end, from the beginning.
        train_loss: mean over its steps.
        holdout_accuracy_pct, holdout_loss: at its end; None where the holdout was not scored, or has no labels.
        learning_rate: of its last step.
        seconds: spent in it, scoring included.
        holdout_agreement_pct: answers that are the teacher's; None where there are labels.
    """

    epoch: int
    steps: int
    train_loss: float
    holdout_accuracy_pct: float | None
    holdout_loss: float | None
    learning_rate: float
    seconds: float
    holdout_agreement_pct: float | None = None

    @property
    def score_pct(self) -> float | None:
        """Score that epochs are compared by: accuracy, or agreement without labels; None if never scored."""
        return self.holdout_agreement_pct if self.holdout_accuracy_pct is None else self.holdout_accuracy_pct


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """The history of a run.

    Attributes:
        history: a row per epoch.
        best_epoch: the epoch with the highest holdout accuracy, or agreement where there are no labels (the latest of
            equals), or None if never scored.
        kept_epoch: whose weights the module holds.
        steps: optimizer steps in all.
        resumed_from_step: the step an earlier, interrupted run had reached; 0 for a fresh run.
        seconds: training time, that of earlier runs included.
        options: every option, for the record.
        other_weights: where both were asked for, those of the last epoch if the best are kept, else of the best.
    """

    history: tuple[EpochRow, ...]
    best_epoch: int | None
    kept_epoch: int
    steps: int
    resumed_from_step: int
    seconds: float
    options: JsonObject
    other_weights: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> JsonObject:
        """Return plain values, for JSON; without weights."""
        found = asdict(replace(self, other_weights=None))
        del found["other_weights"]
        return found


def continued(earlier: Sequence[EpochRow], rows: Sequence[EpochRow]) -> list[EpochRow]:
    """Return the rows of a training and of one that goes on from it, numbered through."""
    if not earlier:
        return list(rows)
    last = earlier[-1]
    return [
        *earlier,
        *(replace(row, epoch=row.epoch + last.epoch, steps=row.steps + last.steps) for row in rows),
    ]


def after(first: FinetuneReport, second: FinetuneReport) -> FinetuneReport:
    """Return the report of two trainings, the second of which went on from the first and decides what is kept."""
    epochs = first.history[-1].epoch
    return replace(
        second,
        history=tuple(continued(first.history, second.history)),
        best_epoch=None if second.best_epoch is None else second.best_epoch + epochs,
        kept_epoch=second.kept_epoch + epochs,
        steps=first.steps + second.steps,
        resumed_from_step=first.resumed_from_step + second.resumed_from_step,
        seconds=first.seconds + second.seconds,
    )


def best_epoch(history: list[EpochRow]) -> int | None:
    """Return the epoch with the highest score on the holdout, the latest of equals; None if there is none."""
    scored = [row for row in history if row.score_pct is not None]
    return max(scored, key=lambda row: (row.score_pct, row.epoch)).epoch if scored else None
