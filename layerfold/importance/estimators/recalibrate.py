"""No training: BatchNorm statistics of the changed network are measured again, and it is scored."""

from __future__ import annotations

from typing import ClassVar

from layerfold.importance.estimators.base import EstimatorBase
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName


class Recalibrate(EstimatorBase):
    """See :class:`Estimator`."""

    rounds: ClassVar[bool] = True

    def scores_of(self, request: Request) -> ScoresByName:
        subject = self.subject
        if subject.precision == "int8":
            return subject.score_rounded(request)
        return subject.score_recalibrated(subject.behind_the_change(subject.changed_form(request)))
