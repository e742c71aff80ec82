"""The paper's way: the whole changed network is trained on the training images, then scored (Kim et al. 2023, 4)."""

from __future__ import annotations

from typing import ClassVar

from layerfold.files import JsonObject
from layerfold.finetune import train_network
from layerfold.importance.estimators.base import EstimatorBase
from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName
from layerfold.importance.subject import Subject
from layerfold.options import FinetuneOptions, RunOptions

_STEPS = 300


class Finetune(EstimatorBase):
    """See :class:`Estimator`. Cosine rate with a warm-up, momentum, cross-entropy."""

    fills_slots: ClassVar[bool] = True
    is_recalibrated: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    trains_original: ClassVar[bool] = True

    def __init__(self, subject: Subject, training: Training) -> None:
        super().__init__(subject, training)
        how = training.settled(steps=_STEPS, learning_rate=None)
        self._options = FinetuneOptions(
            steps=how.steps, batch_size=how.batch_size, learning_rate=how.learning_rate, seed=training.seed
        )
        self._run = RunOptions(device=subject.device, score_holdout=False, progress=False)

    @staticmethod
    def options(training: Training) -> JsonObject:
        return training.settled(steps=_STEPS, learning_rate=None).to_json()

    def scores_of(self, request: Request) -> ScoresByName:
        changed = self.subject.changed_form(request)
        train_network(changed, self.subject.data, self._options, self._run)
        return self.subject.score(changed)
