"""What an estimator is: it scores the network that an entry of the table stands for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

from layerfold.files import JsonObject
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName
from layerfold.importance.subject import Subject


@dataclass(frozen=True, kw_only=True)
class SettledTraining:
    """A :class:`Training` with an estimator's own defaults put in; the learning rate may stay the finetuning's."""

    steps: int
    batch_size: int
    learning_rate: float | None

    def to_json(self) -> JsonObject:
        """Return what journals and sidecars hold."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Settings of an entry's training, for estimators that train.

    Attributes:
        steps: optimizer steps per entry; None for the estimator's own default.
        batch_size: images per step.
        learning_rate: the highest one; None for the estimator's own default.
        seed: of the order of images.
    """

    steps: int | None = None
    batch_size: int = 128
    learning_rate: float | None = None
    seed: int = 0

    def settled(self, *, steps: int, learning_rate: float | None) -> SettledTraining:
        """Return what training an entry depends on besides the seed, with these where nothing was said."""
        return SettledTraining(
            steps=self.steps or steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate or learning_rate,
        )


class Estimator(Protocol):
    """One way to estimate what the score loses by a change.

    A class with these members, registered in the entry-point group ``layerfold.estimators``, is an estimator
    (docs/importance.md); :class:`EstimatorBase` has all but the last. It is made in each worker, once for all entries.

    Attributes:
        fills_slots: whether empty slots are worth trying with an activation, if nobody says.
        is_recalibrated: whether changed networks get new BatchNorm statistics, and so must the original.
        trains: whether weights are trained at all; then frozen parameters matter.
        trains_original: whether changed networks are trained so that the original would gain by it too: then it is
            trained alike before they are compared with it. Training needs labels.
        shares_training: whether one set of weights is trained for all entries first
            (``layerfold.importance.estimators.shared.train_together``); ``subject`` then has these.
        looks_ahead: whether importances are what finetuning is expected to leave of the change
            (``layerfold.importance.recovery.lasting_share``); else they are the change as it was scored.
        known_scores: the scores it can tell (names as in ``ScoresByName``).

    One more may be there: ``rounds``, whether it scores entries in int8 where ``subject.precision`` says so.
    """

    fills_slots: ClassVar[bool]
    is_recalibrated: ClassVar[bool]
    trains: ClassVar[bool]
    trains_original: ClassVar[bool]
    shares_training: ClassVar[bool]
    looks_ahead: ClassVar[bool]
    known_scores: ClassVar[tuple[str, ...]]

    def __init__(self, subject: Subject, training: Training) -> None: ...

    @staticmethod
    def options(training: Training) -> JsonObject:
        """Return what of ``training`` its answers depend on, with defaults put in: for journals and sidecars."""

    def scores_of(self, request: Request) -> ScoresByName:
        """Return the scores of the changed network."""
