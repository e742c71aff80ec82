"""What a worker of an executor does for an importance table: it holds the network and the images, and is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from layerfold.arguments import shown
from layerfold.data import ImageData
from layerfold.errors import ExecutorError, FinetuneError, LayerfoldError
from layerfold.finetune import is_out_of_memory
from layerfold.graph import Network, trace_again
from layerfold.importance.estimators import ESTIMATORS, Estimator, Training
from layerfold.importance.estimators.shared import train_together
from layerfold.importance.journal import Estimate
from layerfold.importance.requests import NOTHING, Request
from layerfold.importance.scores import ScoresByName
from layerfold.importance.sharing import WeightsFile
from layerfold.importance.subject import Subject
from layerfold.options import ImportanceOptions
from layerfold.tables.levers import lever_of


@dataclass(frozen=True, kw_only=True)
class Question:
    """Question to a worker: by which method, and of which entry.

    Attributes:
        method, training: which estimator.
        request: the entry; None for the scores of the original, as the method compares with.
        weights: opens those of a :class:`Lesson`, where the method shares its training.
    """

    method: str
    training: Training
    request: Request | None
    weights: Callable[[], WeightsFile] | None = None

    def __str__(self) -> str:
        if self.request is None:
            return "the original network"
        of = self.request
        if of == NOTHING:
            return "the original network, trained alike"
        changed = "" if of.change is None else f" {lever_of(of.change.word).phrase(of.change)}"
        return f"entry ({of.start}, {of.end}){changed}, method {self.method}"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Training that a worker does once for all entries.

    Attributes:
        training: how.
        requests: the entries.
        checkpoint_path, progress: as in ``train_together``.
    """

    training: Training
    requests: tuple[Request, ...]
    checkpoint_path: Path | None
    progress: bool

    def __str__(self) -> str:
        return f"the weights shared by {len(self.requests)} entries"


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Result of a lesson: parameters by name, and the seconds that it took."""

    weights: dict[str, Tensor]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MakeWitness:
    """Makes a :class:`Witness`, in this process or, pickled, in another.

    Attributes:
        model, net, data: as in ``estimate_importance``.
        options: how many images are drawn, and by which seed.
        threads: torch's, for what follows; None for as many as it has.
    """

    model: nn.Module
    net: Network
    data: ImageData
    options: ImportanceOptions
    threads: int | None

    def __call__(self, device: str) -> Witness:
        if self.threads is not None:
            # Sums come out in another order with another number of threads, and tables should be equal to the bit.
            torch.set_num_threads(self.threads)
        net = trace_again(self.model, self.net) if self.net.graph.graph is None else self.net
        return Witness(self, net, device)

    def subject(
        self, net: Network, device: str, *, is_recalibrated: bool, weights: Mapping[str, Tensor] | None
    ) -> Subject:
        """Return the network to ask."""
        return Subject(
            self.model,
            net,
            self.data,
            self.options,
            is_recalibrated=is_recalibrated,
            weights=weights,
            device=device,
        )


_SubjectKey = tuple[bool, tuple[str, Training] | None]


class Witness:
    """Answers questions; what they share is made once.

    Args:
        made_by: what to hold.
        net: the network, traced in this process.
        device: torch's name of it.
    """

    def __init__(self, made_by: MakeWitness, net: Network, device: str) -> None:
        self._made_by, self._net, self._device = made_by, net, device
        self._subjects: dict[_SubjectKey, Subject] = {}
        self._estimators: dict[tuple[str, Training], Estimator] = {}

    def __call__(self, task: Question | Lesson) -> Estimate | Learned:
        """Return the scores of the network that was asked for, or what a lesson taught.

        Raises:
            FinetuneError: training it diverged, or its scores are not finite.
            ExecutorError: memory is too small.
        """
        try:
            return self._answer(task)
        except FinetuneError as error:
            raise FinetuneError(f"{task}: {error}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            options = self._made_by.options
            raise ExecutorError(
                f"{task}: out of memory with calibration_images={options.calibration_images}, "
                f"holdout_images={options.holdout_images or 'all'}, batch_size={task.training.batch_size}; take fewer, "
                "fewer workers at once, or a device with more memory"
            ) from error

    def _answer(self, task: Question | Lesson) -> Estimate | Learned:
        began = time.monotonic()
        if isinstance(task, Lesson):
            subject = self._subject(False, None, None)
            weights = train_together(
                subject, task.training, task.requests, checkpoint_path=task.checkpoint_path, progress=task.progress
            )
            return Learned(weights=weights, seconds=time.monotonic() - began)
        key = task.method, task.training
        kind = ESTIMATORS[task.method]
        subject = self._subject(kind.is_recalibrated, key if task.weights else None, task.weights)
        if task.request is None:
            return Estimate(_finite(subject.original), 0.0)
        began = time.monotonic()
        if key not in self._estimators:
            self._estimators[key] = kind(subject, task.training)
        scores = self._estimators[key].scores_of(task.request)
        return Estimate(_finite(_checked(scores, task.method)), time.monotonic() - began)

    def _subject(
        self,
        is_recalibrated: bool,
        trained_by: tuple[str, Training] | None,
        weights: Callable[[], WeightsFile] | None,
    ) -> Subject:
        key = is_recalibrated, trained_by
        if key not in self._subjects:
            self._subjects[key] = self._made_by.subject(
                self._net, self._device, is_recalibrated=is_recalibrated, weights=weights and weights().read()
            )
        return self._subjects[key]


def _checked(scores: object, method: str) -> ScoresByName:
    """Return what an estimator answered, which may be of another package, if it is scores.

    Raises:
        LayerfoldError: it is something else.
    """
    if isinstance(scores, Mapping) and all(
        isinstance(name, str) and isinstance(value, int | float) for name, value in scores.items()
    ):
        return dict(scores)
    raise LayerfoldError(
        f"method={method!r}: its scores_of returned {shown(scores)}, expected numbers by name, for example "
        "{'val_loss': -0.4}; see docs/importance.md"
    )


def _finite(scores: ScoresByName) -> ScoresByName:
    """Return scores that are numbers: others would spoil the table, and stay in the journal."""
    for name, value in scores.items():
        if not math.isfinite(value):
            raise FinetuneError(
                f"{name} is {value}; lower learning_rate where the method trains, or see whether the "
                "original gives finite answers on these images"
            )
    return scores


def runs_of(questions: Iterable[Question]) -> list[list[Question]]:
    """Return the questions in runs that share what lies in front of the change: those of one segment start."""
    return [list(run) for _, run in groupby(questions, key=lambda each: each.request and each.request.start)]
