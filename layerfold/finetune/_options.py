"""How to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from layerfold.errors import UsageError

OptimizerName = Literal["sgd", "adamw"]
_LEARNING_RATE = {"sgd": 0.05, "adamw": 1e-3}
_WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 0.02}


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Everything that decides the outcome of a training run, but for model and images.

    Attributes:
        epochs: passes over the train split; ignored where ``steps`` is given.
        steps: optimizer steps in all, or None.
        batch_size: images a step.
        optimizer: ``sgd`` (Nesterov momentum 0.9) or ``adamw``, both from timm.
        learning_rate: the highest; None for 0.05 (sgd) or 0.001 (adamw) at batch 128, in proportion for other batches.
        weight_decay: on weights of convs and linear layers only; None for 0.0001 (sgd) or 0.02 (adamw).
        warmup: share of the steps in which the learning rate rises linearly, 0..1; cosine decay to 0 follows.
        label_smoothing: 0..1.
        distillation_weight: share of the loss that is the teacher's, 0..1; without a teacher it is 0.
        temperature: softens both distributions in the distillation, above 0.
        grad_clip_norm: longest gradient, or None for no limit.
        augment: crop and mirror training images at random.
        keep: weights of the ``last`` epoch, or of the ``best`` on the holdout.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        seed: of the order of images, augmentation and dropout.
    """

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 128
    optimizer: OptimizerName = "sgd"
    learning_rate: float | None = None
    weight_decay: float | None = None
    warmup: float = 0.1
    label_smoothing: float = 0.0
    distillation_weight: float = 0.5
    temperature: float = 2.0
    grad_clip_norm: float | None = 5.0
    augment: bool = True
    keep: Literal["last", "best"] = "last"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        self._require("optimizer", self.optimizer in _LEARNING_RATE, "must be sgd or adamw")
        self._require("keep", self.keep in ("last", "best"), "must be last or best")
        self._require("mixed_precision", self.mixed_precision in ("no", "bf16", "fp16"), "must be no, bf16 or fp16")
        self._require("epochs", self.epochs >= 1, "must be at least 1")
        self._require("steps", self.steps is None or self.steps >= 1, "must be at least 1")
        self._require("batch_size", self.batch_size >= 2, "must be at least 2, since BatchNorm averages over a batch")
        for name in ("learning_rate", "grad_clip_norm"):
            value = getattr(self, name)
            self._require(name, value is None or (value > 0 and math.isfinite(value)), "must be above 0")
        self._require("weight_decay", self.weight_decay is None or self.weight_decay >= 0, "must be at least 0")
        self._require("temperature", self.temperature > 0, "must be above 0")
        for name in ("warmup", "label_smoothing", "distillation_weight"):
            self._require(name, 0 <= getattr(self, name) <= 1, "must be within 0..1")

    def _require(self, name: str, is_fine: bool, rule: str) -> None:
        if not is_fine:
            raise UsageError(f"{name}={getattr(self, name)!r}: {rule}")

    @property
    def highest_learning_rate(self) -> float:
        """``learning_rate``, or what the optimizer and the batch size suggest."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _LEARNING_RATE[self.optimizer] * self.batch_size / 128

    @property
    def actual_weight_decay(self) -> float:
        """``weight_decay``, or what suits the optimizer."""
        return _WEIGHT_DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of step 0..total_steps-1: linear warm-up, then a cosine down to 0."""
        warmup_steps = round(self.warmup * total_steps)
        if step < warmup_steps:
            return self.highest_learning_rate * (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return self.highest_learning_rate * 0.5 * (1 + math.cos(math.pi * done))
