"""How to train, and where a training runs. No torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from layerfold.arguments import check_bounds
from layerfold.errors import UsageError
from layerfold.options.optimizers import LEARNING_RATES, WEIGHT_DECAYS, unknown_optimizer
from layerfold.options.schedules import SCHEDULES, ScheduleName, rate_share
from layerfold.settings import check_settings, setting

_OF_INT8 = ("precision", "int8_share", "int8_rate")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Everything that decides the outcome of a training run, but for model and images.

    Attributes:
        epochs: passes over the train split; ignored where ``steps`` is given.
        steps: optimizer steps in all, or None.
        batch_size: images per step, over all processes.
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
        precision: what the network is trained for: ``float32``, or ``int8``, where the last steps compute with kernels
            and feature maps rounded as in the quantised network.
        int8_share: share of the steps that do so, above 0..1; those before are in float32.
        int8_rate: their highest learning rate, as a share of the others', above 0..1.
        seed: of the order of images, augmentation, mixing and dropout.

    Example:
        >>> options = lf.FinetuneOptions(epochs=20, batch_size=64)
        >>> options.highest_learning_rate
        0.025
        >>> round(options.learning_rate_at(step=1, total_steps=100), 3)
        0.005
    """

    epochs: int = setting(1, least=1, metavar="N", help="passes over the train split")
    steps: int | None = setting(None, least=1, metavar="N", help="steps in all, instead of epochs")
    batch_size: int = setting(128, least=2, metavar="N", help="images per step in training")
    optimizer: str = setting("sgd", metavar="NAME", help="sgd, adamw or another of timm's, such as lamb or lion")
    learning_rate: float | None = setting(None, above=0, help="the highest")
    weight_decay: float | None = setting(None, least=0)
    warmup: float = setting(0.1, least=0, most=1, help="share of the steps in which the learning rate rises")
    schedule: ScheduleName = setting("cosine", choices=SCHEDULES, help="what the learning rate does then")
    decay_rate: float = setting(0.1, above=0, most=1, help="what step and multistep multiply it by")
    decay_every: float = setting(0.3, least=0, most=1, help="share of the steps after which step does so")
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), metavar="X,X", help="shares of the steps after which multistep does so"
    )
    decay_power: float = setting(1.0, above=0, help="of poly")
    label_smoothing: float = setting(0.0, least=0, most=1)
    mixup: float = setting(0.0, least=0, help="alpha, such as 0.2; 0 for none")
    cutmix: float = setting(0.0, least=0, help="alpha, such as 1; 0 for none")
    ema_decay: float | None = setting(
        None, above=0, below=1, help="keep and score a moving average of the weights with this decay, such as 0.9998"
    )
    distillation_weight: float = setting(0.5, least=0, most=1, help="the teacher's share of the loss")
    temperature: float = setting(2.0, above=0, help="softens both answers")
    feature_weight: float = setting(
        0.0,
        least=0,
        help="how much the distance from the teacher's feature maps at the ends of merged segments counts beside the "
        "loss",
    )
    grad_clip_norm: float | None = setting(5.0, above=0, help="longest gradient; 0 for no limit")
    augment: bool | str = setting(True, metavar="NAME", help="a policy, such as rand-m9-mstd0.5")
    random_erasing: float = setting(0.0, least=0, most=1, help="share of the images of which a patch is erased")
    keep: Literal["last", "best"] = setting(
        "last", choices=("last", "best"), help="weights of the last epoch, or of the best on the holdout"
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", choices=("no", "bf16", "fp16"))
    precision: Literal["float32", "int8"] = setting(
        "float32", choices=("float32", "int8"), help="what it is trained for; int8 rounds in the last steps"
    )
    int8_share: float = setting(0.5, above=0, most=1, help="share of the steps that are rounded, with --precision int8")
    int8_rate: float = setting(0.1, above=0, most=1, help="their highest learning rate, as a share of the others'")
    seed: int = setting(0, metavar="N", help="of the order of images, augmentation, mixing and dropout")

    def __post_init__(self) -> None:
        check_settings(self)
        unknown = unknown_optimizer(self.optimizer)
        self._require("optimizer", not unknown, unknown)
        self._require(
            "optimizer",
            self.optimizer in LEARNING_RATES or self.learning_rate is not None,
            "needs a learning_rate, since none is known to suit it",
        )
        self._require("batch_size", not (self.is_mixed and self.batch_size % 2), "must be even for mixup and cutmix")
        self._require(
            "mixed_precision",
            self.precision != "int8" or self.mixed_precision == "no",
            "must be no with precision='int8', whose steps half precision cannot hold",
        )
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

    def deciding(self) -> dict[str, Any]:
        """Return every option that has a part in the outcome: none of int8 where nothing is rounded."""
        found = asdict(self)
        if self.precision == "float32":  # checkpoints of versions that knew no other go on
            found = {name: value for name, value in found.items() if name not in _OF_INT8}
        return found

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


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Device of a training run, files that it keeps and what it shows: nothing of it decides what is learned.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        score_holdout: False saves the time of scoring (then ``keep`` must be ``last``).
        keep_other: return the best weights beside the last, or the last beside the best
            (``FinetuneReport.other_weights``).
        checkpoint_path: file that holds the state of the run; if it exists the run goes on from it, and ends as it
            would have without the interruption. After one that diverged it also goes on with another learning rate.
        checkpoint_every_s: seconds between two writes of it within an epoch, at least 0; it is also written after each
            epoch.
        log_path: CSV file with a row per epoch, written as each ends.
        tensorboard_path: folder for the same in TensorBoard's format.
        progress: show a bar with an ETA on stderr.
        description: the text beside the bar; None for what is being done.

    Example:
        >>> options = lf.RunOptions(device="cuda", log_path="log.csv")
        >>> options.checkpoint_every_s
        60.0
    """

    device: str = setting("cpu", metavar="NAME", help="cpu, cuda, cuda:1, ...")
    score_holdout: bool = True
    keep_other: bool = False
    checkpoint_path: str | Path | None = None
    checkpoint_every_s: float = setting(
        60.0, least=0, metavar="S", help="seconds between two checkpoints within an epoch"
    )
    log_path: str | Path | None = None
    tensorboard_path: str | Path | None = setting(None, metavar="DIR", help="write each epoch for TensorBoard too")
    progress: bool = True
    description: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)
