"""What a plan loses as a whole network: importances of single segments do not quite add up.

Two merges side by side can lose far more together than the sum of both says, since the second works on what the first
has spoilt; no table of single segments knows. To score one plan's network, untrained but for BatchNorm statistics,
takes a second or two, and its loss tells rather well which of several plans is best after finetuning
(docs/importance.md).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import nn

from layerfold.data import ImageData
from layerfold.graph import Network
from layerfold.importance.scores import change_of, importance_of
from layerfold.importance.subject import Subject
from layerfold.solver import Solution


class WholeScores:
    """Scores the networks of whole plans; the images are fetched when the first is asked for.

    Args:
        model: the trained model that ``net`` was traced from; left untouched.
        data: as in :func:`layerfold.importance.estimate_importance`.
        calibration_images, holdout_images, seed: likewise.
        device: torch's name of where networks are scored.

    Attributes:
        score: ``loss``, or ``kl`` where there are no labels: accuracy of untrained networks tells little.
    """

    def __init__(
        self, model: nn.Module, net: Network, data: ImageData, *, calibration_images: int = 256,
        holdout_images: int | None = None, seed: int = 0, device: str = "cpu",
    ) -> None:  # fmt: skip
        self.score = "loss" if data.is_labelled else "kl"
        self._model, self._net, self._data = model, net, data
        self._how: dict[str, Any] = {"calibration_images": calibration_images, "holdout_images": holdout_images,
                                     "seed": seed, "device": device}

    @cached_property
    def _subject(self) -> Subject:
        return Subject(self._model, self._net, self._data, is_recalibrated=True, **self._how)

    def __call__(self, solution: Solution) -> float:
        """Return what the score of a plan's network, before any training, has changed by, in nats; higher is better.

        Raises:
            DataError: a holdout of one class, or labels outside the model's classes.
            SolutionError: a solution of another network.
        """
        scores = self._subject.score_solution(solution)
        return importance_of(change_of(scores, self._subject.original), self.score)
