"""The paper's way: the whole changed network is trained on the training images, then scored (Kim et al. 2023, 4)."""

from __future__ import annotations

from typing import ClassVar

from layerfold.files import JsonObject
from layerfold.finetune import finetune_network
from layerfold.importance.estimators.base import EstimatorBase
from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import Scores

_STEPS = 300


class Finetune(EstimatorBase):
    """See :class:`Estimator`. Cosine rate with a warm-up, momentum, cross-entropy."""

    fills_slots: ClassVar[bool] = True
    is_recalibrated: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    trains_original: ClassVar[bool] = True

    @staticmethod
    def options(training: Training) -> JsonObject:
        return training.settled(steps=_STEPS, learning_rate=None).to_json()

    def scores_of(self, request: Request) -> Scores:
        changed = self.subject.changed_form(request)
        how = self.training.settled(steps=_STEPS, learning_rate=None)
        finetune_network(
            changed,
            self.subject.data,
            steps=how.steps,
            batch_size=how.batch_size,
            learning_rate=how.learning_rate,
            seed=self.training.seed,
            device=self.subject.device,
            score_holdout=False,
            progress=False,
        )
        return self.subject.score(changed)
