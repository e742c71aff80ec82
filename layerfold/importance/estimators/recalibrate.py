"""No training: BatchNorm statistics of the changed network are measured again, and it is scored."""

from __future__ import annotations

from typing import ClassVar

from layerfold.files import JsonObject
from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import Scores
from layerfold.importance.subject import Subject


class Recalibrate:
    """See :class:`Estimator`."""

    fills_slots: ClassVar[bool] = False
    is_recalibrated: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    trains_original: ClassVar[bool] = False
    shares_training: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    known_scores: ClassVar[tuple[str, ...]] = ("val_acc", "val_loss", "agreement", "kl")

    def __init__(self, subject: Subject, training: Training) -> None:
        self._subject = subject

    @staticmethod
    def options(training: Training) -> JsonObject:
        return {}

    def scores_of(self, request: Request) -> Scores:
        subject = self._subject
        return subject.score_recalibrated(subject.behind_the_change(subject.changed_form(request)))
