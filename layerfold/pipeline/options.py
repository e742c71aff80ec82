"""Settings of one compression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from layerfold.arguments import MOST_COUNTED, check_bounds, check_fields, whole
from layerfold.budget import Budget, check_one_given
from layerfold.data import ImageData
from layerfold.errors import UsageError, nearest_names
from layerfold.executor import Executor
from layerfold.export.network import FORMATS
from layerfold.export.precision import canonical_precision
from layerfold.files import JsonObject, as_json
from layerfold.importance import default_method
from layerfold.options import FinetuneOptions, ImportanceOptions, ProfileOptions
from layerfold.options.importance import ADAPTIVE, AUTO, METHODS, SCORES
from layerfold.options.solve import MOST_WHOLES
from layerfold.profiler import get_backend
from layerfold.profiler.backends import Backend, backend_class
from layerfold.profiler.backends.base import NAMED_OPTIONS, USUAL_LAYOUT, USUAL_PRECISION

_EPOCHS = 3
_FIRST_USES = {
    **dict.fromkeys(
        (
            "device",
            "backend",
            "backend_device",
            "precision",
            "layout",
            "backend_options",
            "threads",
            "max_kernel",
            "max_growth",
            "drop_layers",
        ),
        "profile",
    ),
    **dict.fromkeys(
        (
            "data",
            "importance_method",
            "importance_score",
            "importance_images",
            "importance_steps",
            "finetune_epochs",
            "batch_size",
            "train_device",
            "unfreeze",
            "keep_frozen",
        ),
        "importance",
    ),
    **dict.fromkeys(
        (
            "budget_ms",
            "speedup",
            "fastest",
            "alpha",
            "whole_plans",
            "finalist_steps",
            "margin",
            "learning_rate",
            "optimizer",
        ),
        "solve and verify",
    ),
    "formats": "export",
}
_LEASTS = {
    "finetune_epochs": 0,
    "whole_plans": 0,
    "finalist_steps": 0,
    "threads": 1,
    "batch": 1,
    "max_kernel": 1,
    "importance_images": 1,
    "importance_steps": 1,
    "batch_size": 2,
}
_CHOICES = {"importance_method": METHODS, "importance_score": (AUTO, *SCORES), "optimizer": ("sgd", "adamw")}


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """Everything that decides the outcome of ``compress``, but for model, weights and images.

    Attributes:
        budget_ms, speedup, fastest: the end-to-end budget, or the fastest plan whatever it costs; one of the three.
        backend, device, threads, batch: what is measured, and how; ``device`` None for the backend's first.
        precision, layout: ``float32`` or ``float16``, and ``nchw`` or ``channels_last`` where the device has it; None
            for the backend's default.
        backend_options: options of that backend alone, by name.
        exclude: modules left out of every chain.
        merge_pooling: whether average pooling over fixed windows is a layer.
        max_kernel, max_growth: limits on candidates: the merged kernel's side, and merged multiply-adds to replaced.
        drop_layers: whether options without some of a segment's layers are measured and solved for too.
        importance_method, importance_score, importance_images, importance_steps: see ``estimate_importance``;
            images are those of the holdout, None for all. ``adaptive`` refines what plans near the budget stand on;
            ``auto`` is ``recalibrate`` where nothing is finetuned. The score ``auto`` is ``loss``, without labels
            ``kl``.
        alpha: see ``solve_frontier``.
        whole_plans: most plans near the solver's that are scored as whole networks, a guard against merges that spoil
            each other (docs/importance.md); 0 takes the solver's as it is. With ``fastest`` none is scored. Each is
            scored on ``importance_images``, None for 1,000.
        finalist_steps: where these led to other plans than the solver's, steps for which each (four at most) is
            finetuned to choose among them; 0 takes the best whole. None for 60, or for 0 where that is more than a
            quarter of the finetuning, or there are no labels.
        margin: see ``meet_budget``.
        finetune_epochs: passes over the train split; 0 for no finetuning; None for 3. Without labels the
            original's answers are learned.
        unfreeze, keep_frozen: where something trains, whether parameters that are frozen train too, or stay as they
            are; a model with frozen ones is refused where neither is said.
        learning_rate, batch_size, optimizer: of the finetuning.
        train_device: torch's name of where networks are trained and scored; latency is the backend's alone.
        formats: ``onnx``, ``tensorrt``; None for onnx, and tensorrt where it is installed.
        seed: of splits, order of images, random plans.

    Example:
        >>> options = lf.CompressOptions(speedup=1.5, finetune_epochs=10)
        >>> options.backend, options.budget.speedup
        ('onnxruntime', 1.5)
        >>> options.finetune.epochs
        10
    """

    budget_ms: float | None = None
    speedup: float | None = None
    fastest: bool = False
    backend: str = "onnxruntime"
    device: str | None = None
    precision: str | None = None
    layout: str | None = None
    backend_options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    batch: int = 1
    exclude: tuple[str, ...] = ()
    merge_pooling: bool = False
    max_kernel: int = 15
    max_growth: float = 4.0
    drop_layers: bool = False
    importance_method: str = AUTO
    importance_score: str = AUTO
    importance_images: int | None = None
    importance_steps: int | None = None
    alpha: float = 0.0
    whole_plans: int = MOST_WHOLES
    finalist_steps: int | None = None
    margin: float = 0.02
    finetune_epochs: int | None = None
    unfreeze: bool = False
    keep_frozen: bool = False
    learning_rate: float | None = None
    batch_size: int = 128
    optimizer: str = "sgd"
    train_device: str = "cpu"
    formats: tuple[str, ...] | None = None
    seed: int = 0

    one_of: ClassVar[tuple[str, ...]] = ("budget_ms", "speedup", "fastest")

    def __post_init__(self) -> None:
        check_fields(self)
        check_one_given(
            {name: getattr(self, name) for name in self.one_of},
            "give one of the three, for example --budget 4.5ms or --speedup 1.5",
        )
        _ = self.budget  # checks its number
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(f"{name}={value!r}: must be one of {', '.join(known)}{nearest_names(value, known)}")
        for each in self.formats or ():
            if each not in FORMATS:
                raise UsageError(f"formats: {each!r} is none of {', '.join(FORMATS)}{nearest_names(each, FORMATS)}")
        for name, least in _LEASTS.items():
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least=least, most=MOST_COUNTED)
        for name in ("max_growth", "learning_rate"):
            check_bounds(name, getattr(self, name), above=0)
        if self.finalist_steps and (self.fastest or not self.whole_plans or self.finetune_epochs == 0):
            raise UsageError(
                f"finalist_steps={self.finalist_steps}: choose among plans that wholes led to, before a "
                "finetuning; leave it out with fastest, whole_plans=0 or finetune_epochs=0"
            )
        _check_backend_options(self.backend_options)
        if self.precision is not None and canonical_precision(self.precision) == "int8":
            raise UsageError(
                "precision='int8': compress makes networks in float32, which a backend may run in float16; choose one "
                "of these, and quantise its model.onnx afterwards"
            )
        check_bounds("margin", self.margin, least=0)
        if not self.margin < 1:
            raise UsageError(f"margin={self.margin}: must be at least 0 and below 1")
        check_bounds("alpha", self.alpha)
        if self.formats is not None and "onnx" not in self.formats:
            raise UsageError(f"formats={self.formats!r}: must hold onnx, which the last measurement needs")

    @property
    def budget(self) -> Budget:
        """The budget as one object."""
        return Budget(budget_ms=self.budget_ms, speedup=self.speedup)

    @property
    def finetune(self) -> FinetuneOptions:
        """Options of the finetuning; of settled options with epochs (:meth:`settled`)."""
        return FinetuneOptions(
            epochs=self.finetune_epochs or _EPOCHS,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )

    @property
    def importance(self) -> ImportanceOptions:
        """Options of the importances; of settled options (:meth:`settled`)."""
        return ImportanceOptions(
            method=self.importance_method,
            score=None if self.importance_score == AUTO else self.importance_score,
            holdout_images=self.importance_images,
            steps=self.importance_steps,
            batch_size=self.batch_size,
            seed=self.seed,
            keep_frozen=self.keep_frozen,
            executor=Executor(devices=(self.train_device,)),
        )

    @property
    def profile(self) -> ProfileOptions:
        """Options of the profile; of the backend that :meth:`open_backend` returns."""
        return ProfileOptions(batch=self.batch)

    def open_backend(self) -> Backend:
        """Return what latency is measured with.

        Raises:
            UsageError: the backend, or its device, lacks what was chosen; and the other errors of ``get_backend``.
        """
        chosen = {name: getattr(self, name) for name in ("precision", "layout") if getattr(self, name) is not None}
        return get_backend(
            self.backend, device=self.device, **{"threads": self.threads, **chosen, **self.backend_options}
        )

    def settled(self, data: ImageData) -> CompressOptions:
        """Return these settings with what was left to the data said: epochs, and method and score of the importance."""
        score, epochs, method = self.importance_score, self.finetune_epochs, self.importance_method
        if score == AUTO:
            score = "loss" if data.is_labelled else "kl"
        if epochs is None:
            epochs = _EPOCHS
        if method == AUTO:
            method = default_method(data, is_finetuned=bool(epochs))
        return replace(self, importance_score=score, finetune_epochs=epochs, importance_method=method)

    def first_uses(self) -> dict[str, str]:
        """Return, by setting, the first step of a run that depends on it; of those left out the very first does."""
        found = dict(_FIRST_USES)
        if self.importance_method == ADAPTIVE:  # it refines what plans near the budget stand on
            found |= dict.fromkeys(("budget_ms", "speedup", "fastest"), "importance")
        return found

    def as_config(self) -> JsonObject:
        """Return every setting as plain values, as it takes effect, for ``run.json``.

        What stays None is a rule that no number says: all images of the holdout, an importance method's own steps, the
        formats whose packages are installed; before :meth:`settled` also what is left to the data.
        """
        found = as_json(asdict(self))
        # `device` is what the machine calls the one that was measured.
        found["backend_device"] = found.pop("device") or backend_class(self.backend).devices[0]
        found["precision"] = canonical_precision(self.precision or USUAL_PRECISION)
        found["layout"] = self.layout or USUAL_LAYOUT
        rate = FinetuneOptions(
            optimizer=self.optimizer, batch_size=self.batch_size, learning_rate=self.learning_rate
        ).highest_learning_rate
        return {**found, "learning_rate": rate}


def _check_backend_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a backend that have arguments of their own, or could not stand in a run file."""
    for name, value in options.items():
        if name in NAMED_OPTIONS:
            raise UsageError(f"backend_options: {name!r} has an argument of its own; give {name}={value!r} there")
        if not isinstance(name, str) or not isinstance(value, (str, int, float, bool, type(None))):
            raise UsageError(f"backend_options: {name!r} is {value!r}; give texts, numbers, booleans or None")
