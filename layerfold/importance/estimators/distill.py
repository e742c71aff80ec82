"""Only the segment is trained, to give the feature map that the original has at its end; then the network is scored.

The feature maps in front of the segment and behind it are the original's and are kept (entries of one segment start
share them), so that a step costs the segment alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from layerfold.files import JsonObject
from layerfold.importance.estimators.base import EstimatorBase
from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName
from layerfold.importance.subject import Subject
from layerfold.importance.suffix import FeatureBank, cut_behind

_STEPS = 40
_LEARNING_RATE = 2e-3


class Distill(EstimatorBase):
    """See :class:`Estimator`. Adam with a cosine rate; the loss is the squared error over the target's variance."""

    trains: ClassVar[bool] = True

    def __init__(self, subject: Subject, training: Training) -> None:
        super().__init__(subject, training)
        self._how = self.segment_training(training).settled(steps=_STEPS, learning_rate=_LEARNING_RATE)
        self._targets = FeatureBank(subject.original_form, subject.calibration.images)

    @staticmethod
    def options(training: Training) -> JsonObject:
        return training.settled(steps=_STEPS, learning_rate=_LEARNING_RATE).to_json()

    @classmethod
    def segment_training(cls, training: Training) -> Training:
        """Return how a segment is trained; what it leaves open is as by ``distill``."""
        return training

    def scores_of(self, request: Request) -> ScoresByName:
        subject = self.subject
        suffix = subject.behind_the_change(subject.changed_form(request))
        end = subject.net.graph.layers[request.end - 1].feature
        name = (
            end
            if any(node.name == end for node in suffix.network.graph.nodes)
            else f"segment_{request.start}_{request.end}"
        )
        if any(node.name == name for node in suffix.network.graph.nodes) and self._targets.is_affordable((end,)):
            segment = cut_behind(suffix.network, name)
            targets = [values[0] for values in self._targets.values((end,))]
            self._train(segment, suffix.calibration, targets)
        return subject.score_recalibrated(suffix)

    def _train(self, segment: nn.Module, inputs: list[tuple[Tensor, ...]], targets: list[Tensor]) -> None:
        """Train a segment in place.

        Args:
            segment: takes a tuple of ``inputs``.
            inputs: feature maps, a tuple per batch.
            targets: what it should give, a tensor per batch.
        """
        parameters = [each for each in segment.parameters() if each.requires_grad]
        if not parameters:
            return
        steps, rate = self._how.steps, self._how.learning_rate or _LEARNING_RATE
        scale = torch.cat([each.float().flatten(1).var(1) for each in targets]).mean().clamp_min(1e-12)
        optimizer = torch.optim.Adam(parameters, lr=rate)
        segment.train()
        rows = self._rows([len(each) for each in targets], self._how.batch_size)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            batch, chosen = next(rows)
            error = segment(*(value[chosen] for value in inputs[batch])) - targets[batch][chosen]
            loss = error.square().mean() / scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        segment.eval()

    def _rows(self, sizes: list[int], batch_size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (batch, rows of it) without end, every kept batch in turn, in a new order each time round."""
        generator = torch.Generator().manual_seed(self.training.seed)
        while True:
            for batch in torch.randperm(len(sizes), generator=generator).tolist():
                yield batch, torch.randperm(sizes[batch], generator=generator)[:batch_size]
