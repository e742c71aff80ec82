"""One set of weights is trained in the networks of all entries in turn; then each entry is distilled from there on.

Training tells what can be made up for from what cannot, and here all entries share most of its price (Guo et al.,
Single Path One-Shot Neural Architecture Search with Uniform Sampling, ECCV 2020, section 3: weights trained along one
path at a time rank the paths).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from layerfold.files import JsonObject
from layerfold.finetune import train_network
from layerfold.importance.estimators.distill import Distill
from layerfold.importance.estimators.protocol import SettledTraining, Training
from layerfold.importance.requests import Request, entries_hash
from layerfold.importance.sharing import TakingTurns
from layerfold.importance.subject import Subject
from layerfold.options import FinetuneOptions, RunOptions

_STEPS, _LEARNING_RATE = 2, 0.02
_SEGMENT_STEPS, _SEGMENT_IMAGES = 20, 32
"""Twenty steps of 32 images rank better than ten of 128, and cost less (docs/importance.md)."""

_STREAM = 5
"""Tells the random numbers drawn here from those that training draws of the same seed."""


class Shared(Distill):
    """See :class:`Estimator`. Cross-entropy, cosine rate with a warm-up, momentum; the original takes its turns too."""

    trains_original: ClassVar[bool] = True
    shares_training: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = True

    @staticmethod
    def options(training: Training) -> JsonObject:
        of_segment = Shared.segment_training(training)
        together = _together(training).to_json()
        return {**together, "segment_steps": of_segment.steps, "segment_batch_size": of_segment.batch_size}

    @classmethod
    def segment_training(cls, training: Training) -> Training:
        return Training(steps=_SEGMENT_STEPS, batch_size=min(training.batch_size, _SEGMENT_IMAGES))


def _together(training: Training) -> SettledTraining:
    return training.settled(steps=_STEPS, learning_rate=_LEARNING_RATE)


def train_together(
    subject: Subject, training: Training, requests: Sequence[Request], *, checkpoint_path: Path | None, progress: bool
) -> dict[str, Tensor]:
    """Return the parameters, by name, of a model trained in the networks that entries stand for.

    Each step is one of one network's; in each round every one has its turn, in a new order.

    Args:
        subject: the original.
        training: with the steps per entry.
        requests: the entries.
        checkpoint_path: where an interrupted training goes on from, or None.
        progress: show a bar on stderr.
    """
    owner, networks = subject.sharing_forms(requests)
    model = TakingTurns(owner, networks)

    def before_step(step: int, total_steps: int) -> None:
        number, place = divmod(step, len(networks))
        order = np.random.default_rng((training.seed, number, _STREAM)).permutation(len(networks))
        model.give_turn(int(order[place]))

    how = _together(training)
    options = FinetuneOptions(
        steps=how.steps * len(networks),
        batch_size=how.batch_size,
        learning_rate=how.learning_rate,
        seed=training.seed,
    )
    run = RunOptions(
        device=subject.device,
        score_holdout=False,
        checkpoint_path=checkpoint_path,
        progress=progress,
        description="importance: training shared weights",
    )
    entries = {"entries": entries_hash(requests)}
    train_network(model, subject.data, options, run, before_step=before_step, settings=entries)
    return {name: value.detach().to("cpu", copy=True) for name, value in owner.named_parameters()}
