"""The original network on the images it is judged by, and the changed networks that entries stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from layerfold.data import ImageData
from layerfold.errors import DataError
from layerfold.finetune import averaging_batch_norm, check_device, check_labels, has_batch_norm, recalibrate_batch_norm
from layerfold.graph import Network
from layerfold.graph.copying import copy_module
from layerfold.graph.functional import make_out_of_place
from layerfold.importance.requests import NOTHING, Request
from layerfold.importance.rounding import first_node, rounded_entry
from layerfold.importance.scores import ScoresByName, score_logits
from layerfold.importance.sharing import share_parameters
from layerfold.importance.suffix import (
    FeatureBank,
    before,
    crossing_names,
    shared_names,
    split_suffix,
    take_over_shapes,
)
from layerfold.merge import build_train_form, merge_network
from layerfold.options import ImportanceOptions
from layerfold.solver import Solution, SolutionSegment


@dataclass(frozen=True)
class Suffix:
    """Part of a changed network behind the change, with the feature maps that reach it.

    Attributes:
        network: takes each tuple of the two lists; shares its parts with the changed network.
        calibration, holdout: one tuple of feature maps per batch.
    """

    network: fx.GraphModule
    calibration: list[tuple[Tensor, ...]]
    holdout: list[tuple[Tensor, ...]]


class Subject:
    """The original network with its images; every estimator asks it for changed networks and for scores.

    Args:
        model: the trained model; left untouched.
        net: its description.
        data: calibration images come from its train split (where it has none, from its holdout), scores from its
            holdout.
        options: how many images of each are drawn, and by which seed.
        is_recalibrated: whether the original's BatchNorm statistics are measured again before it is scored, so that
            changed networks with new statistics differ from it by the change alone.
        weights: parameters by name, to be looked at in place of the model's own; agreement and divergence are still
            with the answers of ``model``.
        device: torch's name of where everything is computed and kept.

    Attributes:
        original_form: the original as a train form, in eval mode; none of its modules works in place.
        original: its scores.
        calibration: feature maps on the calibration images.
        precision: what entries are scored in.
    """

    def __init__(
        self,
        model: nn.Module,
        net: Network,
        data: ImageData,
        options: ImportanceOptions,
        *,
        is_recalibrated: bool,
        weights: Mapping[str, Tensor] | None = None,
        device: str = "cpu",
    ) -> None:
        self.net, self.data, self.device, self.precision = net, data, device, options.precision
        check_device(device)
        # Channels last is several times faster in depthwise convs on a CPU.
        self._model = copy_module(model).eval().to(device).to(memory_format=torch.channels_last)
        holdout = self._on_device(data.loader("holdout", 256, limit=options.holdout_images, seed=options.seed))
        source = "holdout" if data.train is None else "train"
        drawn = self._on_device(data.loader(source, 128, limit=options.calibration_images, seed=options.seed))
        self._expected = logits_of(self._model, [(x,) for x, _ in holdout])
        if weights is not None:
            self._model.load_state_dict(dict(weights), strict=False)
        if is_recalibrated:
            recalibrate_batch_norm(self._model, [x for x, _ in drawn])
        self.original_form = self._form(NOTHING)
        for module in self.original_form.modules():
            make_out_of_place(module)  # feature maps are kept
        take_over_shapes(net, self.original_form)
        self.calibration = FeatureBank(self.original_form, [x for x, _ in drawn])
        self.calibration_labels = [y for _, y in drawn]
        self._holdout = FeatureBank(self.original_form, [x for x, _ in holdout])
        self._labels = torch.cat([y for _, y in holdout]) if data.is_labelled else None
        if self._labels is not None:
            num_classes = int(self.original_form(holdout[0][0][:1]).shape[1])
            check_labels(self._labels, num_classes)
            for labels in self.calibration_labels:
                check_labels(labels, num_classes, "calibration image")
            if bool((self._labels == self._labels[0]).all()):
                raise DataError(
                    f"{data.name}: all images scored ({len(self._labels)}) have label "
                    f"{int(self._labels[0])}; a score needs two classes or more: give another holdout, or "
                    "score more images (holdout_images)"
                )
        self.original = self.score(self.original_form)

    def changed_form(self, request: Request) -> fx.GraphModule:
        """Return the network that an entry stands for, in eval mode, with weights of its own."""
        return self._form(request)

    def sharing_forms(self, requests: Iterable[Request]) -> tuple[nn.Module, list[fx.GraphModule]]:
        """Return a copy of the model, and the networks that entries stand for with its very parameters.

        BatchNorm statistics are each network's own.
        """
        owner = copy_module(self._model)
        share_parameters(owner)
        return owner, [self._form(each, owner) for each in requests]

    def behind_the_change(self, changed: fx.GraphModule, first: str | None = None) -> Suffix:
        """Cut off, in place, what a changed network shares with the original, where its feature maps fit in memory.

        Args:
            changed: of :meth:`changed_form`.
            first: a node that counts as changed, with all that depends on it.
        """
        shared = shared_names(changed, self.original_form)
        if first is not None:
            shared = before(first, shared, changed)
        names = crossing_names(changed, shared)
        if self.calibration.is_affordable(names) and self._holdout.is_affordable(names):
            return Suffix(split_suffix(changed, shared), self.calibration.values(names), self._holdout.values(names))
        return Suffix(changed, self.calibration.inputs(), self._holdout.inputs())

    def score(self, network: nn.Module) -> ScoresByName:
        """Score a network on the holdout's images."""
        return self._scores(logits_of(network, self._holdout.inputs()))

    def score_solution(self, solution: Solution) -> ScoresByName:
        """Score the network of a whole plan, with BatchNorm statistics measured again.

        Merged, it gives the same answers up to rounding, in less time.
        """
        form = build_train_form(self._model, self.net, solution).eval()
        recalibrate_batch_norm(form, self.calibration.images)
        return self.score(merge_network(form, tolerance=None))

    def score_recalibrated(self, suffix: Suffix) -> ScoresByName:
        """Measure BatchNorm statistics again, in place, and score."""
        self._recalibrate(suffix)
        return self._scores(logits_of(suffix.network, suffix.holdout))

    def score_rounded(self, request: Request) -> ScoresByName:
        """Score the network of an entry with the segment in int8, BatchNorm statistics measured again before."""
        changed = self.changed_form(request)
        suffix = self.behind_the_change(changed, first_node(changed, self.net, request))
        if has_batch_norm(suffix.network):
            self._recalibrate(suffix)
        network = rounded_entry(suffix.network, self.net, request, suffix.holdout)
        return self._scores(logits_of(network, suffix.holdout))

    def _recalibrate(self, suffix: Suffix) -> None:
        with averaging_batch_norm(suffix.network):
            for values in suffix.calibration:
                suffix.network(*values)

    def _on_device(self, batches: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        return [(_channels_last(x.to(self.device)), y.to(self.device)) for x, y in batches]

    def _scores(self, logits: Tensor) -> ScoresByName:
        return score_logits(logits, self._expected, self._labels)

    def _form(self, request: Request, model: nn.Module | None = None) -> fx.GraphModule:
        stops, dropped = request.merge_pos(self.net), request.dropped
        kept = tuple(layer.index for layer in self.net.layers if layer.index not in dropped) if dropped else None
        changed = SolutionSegment(start=request.start, end=request.end, plan=request.variant, layers=request.layers)
        solution = Solution(
            act_pos=tuple(p for p in request.act_pos(self.net) if p in set(stops)),
            merge_pos=stops,
            kept_layers=kept,
            segments=(changed,) if request.variant else (),
        )
        return build_train_form(model or self._model, self.net, solution).eval()


def logits_of(network: nn.Module, batches: list[tuple[Tensor, ...]]) -> Tensor:
    """Return a network's answers [images, classes] to batches of inputs, without gradients."""
    with torch.no_grad():
        return torch.cat([network(*values) for values in batches])


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
