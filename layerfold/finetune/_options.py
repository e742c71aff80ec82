"""How to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerfold.arguments import MOST_COUNTED, check_bounds, check_fields, whole
from layerfold.errors import UsageError
from layerfold.finetune._optimizers import LEARNING_RATES, WEIGHT_DECAYS, unknown_optimizer
from layerfold.finetune._schedules import SCHEDULES, ScheduleName, rate_share

_SHARES = ("warmup", "label_smoothing", "distillation_weight", "decay_every", "random_erasing")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Everything that decides the outcome of a training run, but for model and images.

    Attributes:
        epochs: passes over the train split; ignored where ``steps`` is given.
        steps: optimizer steps in all, or None.
        batch_size: images a step, over all processes.
        optimizer: a name of timm's: ``sgd`` (Nesterov momentum 0.9), ``adamw``, ``lamb``, ``lion``, ...
        learning_rate: the highest; None for 0.05 (sgd) or 0.001 (adamw) at batch 128, in proportion for other batches.
            Other optimizers need one.
        weight_decay: on weights of convs and linear layers only; None for 0.0001 (sgd), 0.02 (adamw) or 0 (others).
        warmup: share of the steps in which the learning rate rises linearly, 0..1; the schedule follows.
        schedule: ``cosine`` (down to 0), ``step``, ``multistep``, ``poly`` or ``constant``.
        decay_rate: what ``step`` and ``multistep`` multiply the learning rate by, 0..1.
        decay_every: share of the steps after which ``step`` does so, 0..1.
        milestones: shares of the steps after which ``multistep`` does so, 0..1, rising.
        decay_power: of ``poly``, above 0; 1 is a straight line down to 0.
        label_smoothing: 0..1.
        mixup, cutmix: alpha of the distribution of shares by which images are mixed, at least 0; 0 for none.
        ema_decay: of the moving average of the weights, 0..1; None for no average. Scores and the weights kept are then
            the average's.
        distillation_weight: share of the loss that is the teacher's, 0..1; without a teacher it is 0.
        temperature: softens both distributions in the distillation, above 0.
        feature_weight: how much the distance from the teacher's feature maps counts beside that loss, at least 0.
        grad_clip_norm: longest gradient, or None for no limit.
        augment: crop and mirror training images at random; or the name of a policy, such as ``rand-m9-mstd0.5``.
        random_erasing: share of the images of which a patch is erased, 0..1.
        keep: weights of the ``last`` epoch, or of the ``best`` on the holdout.
        mixed_precision: ``no``, ``bf16`` or ``fp16`` (which needs a GPU).
        seed: of the order of images, augmentation, mixing and dropout.
    """

    epochs: int = 1
    steps: int | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float | None = None
    weight_decay: float | None = None
    warmup: float = 0.1
    schedule: ScheduleName = "cosine"
    decay_rate: float = 0.1
    decay_every: float = 0.3
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay_power: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None
    distillation_weight: float = 0.5
    temperature: float = 2.0
    feature_weight: float = 0.0
    grad_clip_norm: float | None = 5.0
    augment: bool | str = True
    random_erasing: float = 0.0
    keep: Literal["last", "best"] = "last"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        unknown = unknown_optimizer(self.optimizer)
        self._require("optimizer", not unknown, unknown)
        self._require(
            "optimizer",
            self.optimizer in LEARNING_RATES or self.learning_rate is not None,
            "needs a learning_rate, since none is known to suit it",
        )
        self._require("schedule", self.schedule in SCHEDULES, f"must be one of {', '.join(SCHEDULES)}")
        self._require("keep", self.keep in ("last", "best"), "must be last or best")
        self._require("mixed_precision", self.mixed_precision in ("no", "bf16", "fp16"), "must be no, bf16 or fp16")
        whole("epochs", self.epochs, least=1, most=MOST_COUNTED)
        if self.steps is not None:
            whole("steps", self.steps, least=1, most=MOST_COUNTED)
        self._require("batch_size", self.batch_size >= 2, "must be at least 2, since BatchNorm averages over a batch")
        for name in ("learning_rate", "grad_clip_norm", "temperature", "decay_power"):
            check_bounds(name, getattr(self, name), above=0)
        for name in ("weight_decay", "mixup", "cutmix", "feature_weight"):
            check_bounds(name, getattr(self, name), least=0)
        self._require("batch_size", not (self.is_mixed and self.batch_size % 2), "must be even for mixup and cutmix")
        for name in _SHARES:
            check_bounds(name, getattr(self, name), least=0)
            self._require(name, 0 <= getattr(self, name) <= 1, "must be within 0..1")
        check_bounds("decay_rate", self.decay_rate, above=0, most=1)
        check_bounds("ema_decay", self.ema_decay, above=0)
        self._require("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "must be between 0 and 1")
        for milestone in self.milestones:
            check_bounds("milestones", milestone, above=0)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        self._require(
            "milestones",
            all(0 < each < 1 for each in self.milestones) and list(self.milestones) == sorted(self.milestones),
            "must be shares between 0 and 1, rising",
        )

    def _require(self, name: str, is_fine: bool, rule: str) -> None:
        if not is_fine:
            raise UsageError(f"{name}={getattr(self, name)!r}: {rule}")

    @property
    def is_mixed(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def highest_learning_rate(self) -> float:
        """``learning_rate``, or what the optimizer and the batch size suggest."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATES[self.optimizer] * self.batch_size / 128

    @property
    def actual_weight_decay(self) -> float:
        """``weight_decay``, or what suits the optimizer."""
        return WEIGHT_DECAYS.get(self.optimizer, 0.0) if self.weight_decay is None else self.weight_decay

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of step 0..total_steps-1: linear warm-up, then the schedule."""
        return self.highest_learning_rate * rate_share(step, total_steps, self)
