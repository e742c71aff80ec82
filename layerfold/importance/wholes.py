"""What a plan loses as a whole network: importances of single segments do not quite add up.

Two merges side by side can lose far more together than the sum of both says, since the second works on what the first
has spoilt; no table of single segments knows. The loss of the whole plan's network, untrained but for BatchNorm
statistics, costs one pass over the images, and tells plans that are spoilt from those that are not
(docs/importance.md).
"""

from __future__ import annotations

import math

from torch import nn

from layerfold.data import ImageData
from layerfold.finetune import check_answers, first_images
from layerfold.graph import Network
from layerfold.importance.scores import change_of, importance_from_change
from layerfold.importance.subject import Subject
from layerfold.options import ImportanceOptions
from layerfold.solver import Solution

HOLDOUT_IMAGES = 1000
"""That plans are scored on, unless another number is asked for."""


class WholeScores:
    """Scores the networks of whole plans.

    Args:
        model: the trained model that ``net`` was traced from; left untouched.
        data: as in :func:`layerfold.estimate_importance`.
        calibration_images, seed: likewise.
        holdout_images: how many the score is of, at most; None for 1,000, by which docs/importance.md judges it.
        device: torch's name of where networks are scored.

    Attributes:
        score: ``loss``, or ``kl`` where there are no labels: accuracy of untrained networks tells little.

    Raises:
        DataError: an image that cannot be read, a holdout of one class, or labels outside the model's classes.
        DeviceUnavailableError: there is no such device.
        UsageError: the model gives no logits.
    """

    def __init__(
        self,
        model: nn.Module,
        net: Network,
        data: ImageData,
        *,
        calibration_images: int = 256,
        holdout_images: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        check_answers(model, first_images(data), needs_finite=False)  # what has no finite answers has lost all
        self.score = "loss" if data.is_labelled else "kl"
        self._subject = Subject(
            model,
            net,
            data,
            ImportanceOptions(
                calibration_images=calibration_images, holdout_images=holdout_images or HOLDOUT_IMAGES, seed=seed
            ),
            is_recalibrated=True,
            device=device,
        )

    def __call__(self, solution: Solution) -> float:
        """Return what the score of a plan's network, before any training, has changed by, in nats; higher is better.

        A network whose answers are not finite has lost all: minus infinity.

        Raises:
            SolutionError: a solution of another network.
        """
        scores = self._subject.score_solution(solution)
        change = importance_from_change(change_of(scores, self._subject.original), self.score)
        return change if math.isfinite(change) else -math.inf
