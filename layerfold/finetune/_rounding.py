"""The part of a training that is done in int8: kernels and feature maps rounded as in the quantised network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from layerfold.data import ImageData
from layerfold.errors import UsageError
from layerfold.finetune._layout import channels_last
from layerfold.finetune._modes import device_of, modes_kept
from layerfold.merge import ACTIVATION_RANGES
from layerfold.options.finetune import FinetuneOptions, RunOptions
from layerfold.qat import check_places, measure_ranges, places_of_form, ranges_of, rounded_network

_IMAGES = 512
"""That ranges are read from before the first rounded step; they are learned from then on."""
_BATCH = 64


class RoundedTraining:
    """A network made ready to be trained in int8, in place.

    The statistics of its BatchNorms are folded into the kernels and stay as they are. Before the first step the ranges
    of its feature maps are measured, on the same images again by a run that was stopped before its first checkpoint.

    Args:
        form: a train form (its segments train as the merged kernels that they become) or a deploy form.
        data: ranges are measured on its training images.

    Attributes:
        network: what is trained; it has the form's own parameters, and the ranges.

    Raises:
        UsageError: no traced network, or one of which feature maps are rounded that training cannot see.
    """

    def __init__(self, form: nn.Module, data: ImageData) -> None:
        if not isinstance(form, fx.GraphModule):
            raise UsageError(
                f"precision='int8': takes a traced network, this is a {type(form).__name__}; give what "
                "build_train_form or merge_network returned, or net.graph.on(model)"
            )
        self._form, self._data = form, data
        places = places_of_form(form)
        check_places(places)
        self.network = rounded_network(form, places)

    def before_step(self, step: int, total_steps: int) -> None:
        """Measure ranges before the first step."""
        if step == 0:
            with modes_kept(self.network):
                self.network.eval()
                measure_ranges(self.network, self._batches(device_of(self.network)))

    def _batches(self, device: torch.device) -> Iterator[tuple[Tensor]]:
        part = "holdout" if self._data.train is None else "train"
        loader = self._data.loader(part, _BATCH, limit=_IMAGES)
        return ((channels_last(images.to(device)),) for images, _ in loader)

    def finish(self) -> None:
        """Keep the ranges with the form."""
        self._form.meta[ACTIVATION_RANGES] = ranges_of(self.network)


def check_rounding(options: FinetuneOptions, run: RunOptions, fade: float) -> None:
    """Refuse what makes no sense beside rounding.

    Raises:
        UsageError: activations that fade while kernels are rounded, or a second set of weights.
    """
    if fade and options.int8_share >= 1:
        raise UsageError(
            f"fade={fade:g}: activations fade in the steps in float32, and int8_share=1 leaves none; give a smaller "
            "share"
        )
    if run.keep_other:
        raise UsageError(
            "keep_other: ranges of feature maps are kept for one set of weights; leave it out (--save-both) with "
            "precision='int8'"
        )


def steps_of(options: FinetuneOptions, data: ImageData) -> tuple[int, int]:
    """Return how many steps are in float32 and how many are rounded."""
    loader = data.loader("train", options.batch_size, drop_last=True)
    total = options.steps or options.epochs * len(loader)
    rounded = min(max(round(total * options.int8_share), 1), total)
    return total - rounded, rounded
