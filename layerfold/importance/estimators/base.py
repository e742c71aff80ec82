"""What most estimators have in common: they train nothing, and compare with an original whose statistics are new."""

from __future__ import annotations

from typing import Any, ClassVar

from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName
from layerfold.importance.subject import Subject


class EstimatorBase:
    """An :class:`Estimator` with its attributes set for one that trains nothing; ``scores_of`` is left to write.

    Attributes:
        subject: the original network on its images: gives changed networks, and scores them.
        training: how entries are trained, by those that train.
    """

    fills_slots: ClassVar[bool] = False
    is_recalibrated: ClassVar[bool] = True
    trains: ClassVar[bool] = False
    trains_original: ClassVar[bool] = False
    shares_training: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = False
    rounds: ClassVar[bool] = False
    known_scores: ClassVar[tuple[str, ...]] = ("val_acc", "val_loss", "agreement", "kl")

    def __init__(self, subject: Subject, training: Training) -> None:
        self.subject, self.training = subject, training

    @staticmethod
    def options(training: Training) -> dict[str, Any]:
        """Return what of ``training`` the answers depend on: of one that does not train, nothing."""
        return {}

    def scores_of(self, request: Request) -> ScoresByName:
        """Return the scores of the changed network."""
        raise NotImplementedError
