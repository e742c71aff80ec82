"""What a training run tells afterwards."""

from __future__ import annotations

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


def best_epoch(history: list[EpochRow]) -> int | None:
    """Return the epoch with the highest score on the holdout, the latest of equals; None if there is none."""
    scored = [row for row in history if row.score_pct is not None]
    return max(scored, key=lambda row: (row.score_pct, row.epoch)).epoch if scored else None
