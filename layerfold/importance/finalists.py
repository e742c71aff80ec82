"""How good the networks of a few plans get by a short finetuning: which of them will be best after a long one.

What a plan loses before any training (``wholes.py``) tells a spoilt plan from a sound one, but not which of two sound
ones training mends better. The first steps of that training do (docs/importance.md). They cost far more than a pass
over the images, so they are for the few plans that are left at the end.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from layerfold.data import ImageData
from layerfold.errors import DataError, DivergenceError
from layerfold.finetune import check_device, evaluate_network, train_network
from layerfold.graph import Network
from layerfold.importance.wholes import HOLDOUT_IMAGES
from layerfold.merge import build_train_form
from layerfold.options import FinetuneOptions, RunOptions
from layerfold.solver import Solution

STEPS = 60
"""Of a finalist's training."""

_BATCH_IMAGES = 256


class FinalistScores:
    """Scores plans by finetuning their networks for a few steps, each alike.

    Args:
        model: the trained model that ``net`` was traced from, which is the teacher too; left untouched.
        data: labelled images; its train split is learnt, its holdout scored.
        options: of the training, None for the defaults; without ``steps`` there are 60. The learning rate goes through
            its whole schedule in them. Much fewer leave BatchNorm statistics behind, and tell less.
        holdout_images: how many the score is of, at most; None for 1,000.
        device: torch's name of where networks are trained.
        progress: show a bar on stderr for each.

    Attributes:
        steps: of each training.

    Raises:
        DataError: no train split, no labels, a holdout of one class, or images that cannot be read.
        DeviceUnavailableError: there is no such device.
        UsageError: no device has that name.
    """

    def __init__(
        self,
        model: nn.Module,
        net: Network,
        data: ImageData,
        options: FinetuneOptions | None = None,
        *,
        holdout_images: int | None = None,
        device: str = "cpu",
        progress: bool = False,
    ) -> None:
        check_device(device)
        data.split("train")
        data.check_holdout()
        if not data.is_labelled:
            raise DataError(
                f"{data.name}: has no labels, and a network cannot be finetuned without; give labelled "
                "images, or choose among plans as wholes (WholeScores)"
            )
        self.steps = (options and options.steps) or STEPS
        self._options = replace(options or FinetuneOptions(), steps=self.steps, keep="last")
        self._model, self._net, self._data = model, net, data
        self._images = holdout_images or HOLDOUT_IMAGES
        self._run = RunOptions(
            device=device, score_holdout=False, progress=progress, description="verify: train a finalist"
        )

    def __call__(self, solution: Solution) -> float:
        """Return the loss of a plan's network after its training, in nats, negated: higher is better.

        Training that diverges, or answers that are not finite, have lost all: minus infinity.

        Raises:
            SolutionError: a solution of another network.
            FinetuneError: memory is too small.
        """
        student = build_train_form(self._model, self._net, solution)
        try:
            train_network(student, self._data, self._options, self._run, teacher=self._model)
        except DivergenceError:
            return -math.inf
        holdout = self._data.loader("holdout", _BATCH_IMAGES, limit=self._images, seed=self._options.seed)
        loss = evaluate_network(student.to(self._run.device), holdout).loss
        assert loss is not None  # labels are checked in the beginning
        return -loss if math.isfinite(loss) else -math.inf
