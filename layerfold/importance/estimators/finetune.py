"""The paper's way: the whole changed network is trained on the training images, then scored (Kim et al. 2023, 4)."""

from __future__ import annotations

from typing import Any, ClassVar

from layerfold.finetune import train_network
from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import Scores
from layerfold.importance.subject import Subject
from layerfold.options import FinetuneOptions, RunOptions

_STEPS = 300


class Finetune:
    """See :class:`Estimator`. Cosine rate with a warm-up, momentum, cross-entropy."""

    fills_slots: ClassVar[bool] = True
    is_recalibrated: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    trains_original: ClassVar[bool] = True
    shares_training: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    known_scores: ClassVar[tuple[str, ...]] = ("val_acc", "val_loss", "agreement", "kl")

    def __init__(self, subject: Subject, training: Training) -> None:
        self._subject, self._training = subject, training
        self._run = RunOptions(device=subject.device, score_holdout=False, progress=False)

    @staticmethod
    def options(training: Training) -> dict[str, Any]:
        return training.options(steps=_STEPS, learning_rate=None)

    def scores_of(self, request: Request) -> Scores:
        changed = self._subject.changed_form(request)
        options = FinetuneOptions(**self.options(self._training), seed=self._training.seed)
        train_network(changed, self._subject.data, options, self._run)
        return self._subject.score(changed)
