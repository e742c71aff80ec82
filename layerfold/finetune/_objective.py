"""What a training run makes small."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerfold.errors import DataError, UsageError
from layerfold.finetune._features import feature_distance, tapped
from layerfold.options.finetune import FinetuneOptions


class Objective:
    """(1 - w) * cross-entropy + w * T^2 * KL(teacher || student) + v * distance of feature maps.

    Without labels there is no cross-entropy, and w is 1.

    Args:
        options: w is ``distillation_weight``, T ``temperature``, v ``feature_weight``.
        model: what is trained.
        teacher: in eval mode; None for labels alone.
        features: pairs of nodes (of the model, of the teacher) whose values are compared.
        is_labelled: whether images have labels.

    Attributes:
        student: what to run in place of the model: it gives feature maps too, where they are needed.

    Raises:
        UsageError: feature maps are to be compared and there is no teacher, or none are named.
        DataError: neither labels nor a teacher.
    """

    def __init__(
        self,
        options: FinetuneOptions,
        model: nn.Module,
        teacher: nn.Module | None,
        features: Sequence[tuple[str, str]],
        *,
        is_labelled: bool = True,
    ) -> None:
        if teacher is None and not is_labelled:
            raise DataError(
                "finetuning: the images have no labels, and without a teacher there is nothing to learn; "
                "give one (teacher, the original network), or labelled images"
            )
        self._options, self._is_labelled = options, is_labelled
        self._weight = options.distillation_weight if teacher is not None else 0.0
        if not is_labelled:
            self._weight = 1.0
        self._feature_weight = options.feature_weight
        self.student, self._teacher = model, teacher
        if self._feature_weight:
            if teacher is None or not features:
                raise UsageError(
                    f"feature_weight={self._feature_weight:g}: needs a teacher, and features, the names "
                    "of what is compared (segment_ends)"
                )
            self.student = tapped(model, [mine for mine, _ in features], "model")
            self._teacher = tapped(teacher, [theirs for _, theirs in features], "teacher")

    @property
    def is_teaching(self) -> bool:
        """Whether the teacher has a part in it."""
        return bool(self._teacher is not None and (self._weight or self._feature_weight))

    def __call__(self, outputs: Any, images: Tensor, targets: Tensor, accelerator: Any) -> Tensor:
        """Return the loss, mean over the images.

        Args:
            outputs: of :attr:`student` on the images.
            images: [batch, channels, height, width].
            targets: labels [batch], or probabilities [batch, classes]; without meaning where there are no labels.
            accelerator: whose precision the teacher runs in.
        """
        logits, features = outputs if self._feature_weight else (outputs, ())
        loss: Tensor = logits.new_zeros(())
        if self._is_labelled:
            loss = F.cross_entropy(logits, targets, label_smoothing=self._options.label_smoothing)
        if self._teacher is None or not self.is_teaching:
            return loss
        with torch.no_grad(), accelerator.autocast():
            answer = self._teacher(images)
        expected, expected_features = answer if self._feature_weight else (answer, ())
        if self._weight:
            distilled = distillation_loss(logits, expected, self._options.temperature)
            loss = (1 - self._weight) * loss + self._weight * distilled
        if self._feature_weight:
            loss = loss + self._feature_weight * feature_distance(features, expected_features)
        return loss


def distillation_loss(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(teacher || student) of distributions softened by ``temperature``, mean over the batch.

    Args:
        logits: the student's [batch, classes].
        expected: the teacher's [batch, classes].
        temperature: above 0.
    """
    student = (logits.float() / temperature).log_softmax(1)
    teacher = (expected.float() / temperature).log_softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
