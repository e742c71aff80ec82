"""How importances are estimated. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, overload

from layerfold.arguments import check_fields
from layerfold.errors import UsageError
from layerfold.plugins import entry_points_of
from layerfold.settings import check_settings, setting

if TYPE_CHECKING:
    from layerfold.executor import Executor
    from layerfold.graph import Segment


class MethodNames(Sequence[str]):
    """Names of methods: ours, and those of estimators that other packages register, looked for when first needed."""

    def __init__(self, *own: str, last: tuple[str, ...] = (), but: tuple[str, ...] = ()) -> None:
        self._own, self._last, self._known = own, last, {*own, *last, *but}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        others = sorted(name for name in entry_points_of("layerfold.estimators") if name not in self._known)
        return (*self._own, *others, *self._last)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self._names[index]

    def __len__(self) -> int:
        return len(self._names)

    def __bool__(self) -> bool:
        return True  # without looking for any


_OWN = ("shared", "recalibrate", "distill", "finetune", "taylor")
AUTO, ADAPTIVE = "auto", "adaptive"
ESTIMATORS = MethodNames(*_OWN, but=(AUTO, ADAPTIVE))
"""Names of :data:`layerfold.importance.estimators.ESTIMATORS`, which a test compares."""
METHODS = MethodNames(AUTO, *_OWN, last=(ADAPTIVE,))
SCORES = ("accuracy", "agreement", "loss", "kl")


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Settings of ``adaptive``: training is spent where it counts.

    Attributes:
        start_with: method of the cheap estimates.
        refine_with: method of the expensive ones.
        most: most entries to refine, at least 1; None for one in five, at least 16.
        budgets_ms: latencies end to end whose plans are looked at; none for plans all over the frontier.

    Example:
        >>> options = lf.ImportanceOptions(method="adaptive", refinement=lf.Refinement(most=20))
        >>> options.refinement.refine_with
        'finetune'
    """

    start_with: str = setting("shared", choices=ESTIMATORS, metavar="NAME", help="the cheap method")
    refine_with: str = setting("finetune", choices=ESTIMATORS, metavar="NAME", help="the expensive method")
    most: int | None = setting(None, least=1, metavar="N", help="most entries to estimate by the expensive method")
    budgets_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class ImportanceOptions:
    """Settings of an estimate of importances: how, of which segments, and where.

    Attributes:
        method: ``auto``, ``shared``, ``recalibrate``, ``distill``, ``finetune``, ``taylor`` or ``adaptive``; see
            :func:`layerfold.estimate_importance`.
        score: ``accuracy`` (points), ``agreement`` with the original's answers (points, needs no labels), ``loss`` (the
            holdout's cross-entropy, nats, negated) or ``kl`` (divergence from the original's answers, nats, negated,
            needs no labels); None for ``accuracy``, or ``agreement`` where there are no labels.
        fill_slots: whether empty slots are also tried with an activation; None for yes with ``finetune`` and no with
            the others, since a fresh nonlinearity only ever loses before training.
        calibration_images, holdout_images: how many images are used, at least 2 and 1; None for all. ``distill`` trains
            on the former.
        steps, batch_size, learning_rate: of ``finetune`` (300 per entry), ``distill`` (40) and ``shared`` (2); with
            ``adaptive`` of its expensive method.
        epochs: in place of ``steps``, passes over the train split per entry; the paper's ``finetune`` has one.
        refinement: how ``adaptive`` goes about it.
        precision: ``float32``, or ``int8``: the kernel of each entry's segment and the feature maps at its ends are
            rounded, so that the importance holds what quantising it loses too. With ``recalibrate`` alone, which
            ``auto`` then is.
        seed: of the images drawn and of training.
        unfreeze, keep_frozen: by methods that train, whether parameters that are frozen train too, or stay as they are;
            a model with frozen parameters is refused where neither is said.
        candidates: segments; None for those of the latency table, or ``net.candidates()``.
        executor: where entries are estimated: ``local``, ``ray``, or an :class:`Executor` that says more. The table is
            the same to the bit on CPUs of one kind with equally many threads.
        model_name: what the user calls the model, for the table's provenance.

    Example:
        >>> options = lf.ImportanceOptions(method="finetune", score="loss", epochs=1)
        >>> options.calibration_images
        256
    """

    method: str = setting(AUTO, choices=METHODS, metavar="NAME")
    score: str | None = setting(None, choices=SCORES, metavar="NAME")
    fill_slots: bool | None = setting(None, help="also try an activation where the original has none")
    calibration_images: int | None = setting(256, least=2, metavar="N", help="images for BatchNorm statistics")
    holdout_images: int | None = setting(None, least=1, metavar="N", help="images scored")
    steps: int | None = setting(None, least=1, metavar="N", help="training steps per entry")
    epochs: int | None = setting(
        None, least=1, metavar="N", help="the same as passes over the train split; the paper finetunes for one"
    )
    batch_size: int = 128
    learning_rate: float | None = setting(None, above=0, help="with finetune, distill and shared")
    refinement: Refinement = field(default_factory=Refinement)
    precision: str = setting(
        "float32", choices=("float32", "int8"), help="what entries are scored in: int8 rounds their merged kernels"
    )
    seed: int = setting(0, metavar="N", help="of the images drawn and of training")
    unfreeze: bool = False
    keep_frozen: bool = False
    candidates: Sequence[Segment] | None = None
    executor: str | Executor = "local"
    model_name: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs is not None and (self.steps is not None or self.epochs < 1):
            raise UsageError(f"epochs={self.epochs}, steps={self.steps}: give one of them, at least 1")
        check_settings(self)
