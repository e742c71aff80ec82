"""Mixup and CutMix: images and labels of two images at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from layerfold.options.finetune import FinetuneOptions


class BatchMixer:
    """timm's Mixup, drawn from the seed and the step alone, so that a resumed run mixes as it would have.

    An image is mixed with the one as far from the batch's other end; with both on, a step takes one of the two ways.

    Args:
        options: ``mixup``, ``cutmix`` and ``seed``.
        num_classes: outputs of the network.

    Source: Zhang et al., *mixup* (ICLR 2018, arXiv 1710.09412); Yun et al., *CutMix* (ICCV 2019, arXiv 1905.04899).
    """

    def __init__(self, options: FinetuneOptions, num_classes: int) -> None:
        from timm.data.mixup import Mixup

        self._seed, self.num_classes = options.seed, num_classes
        self._mixup: Any = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=options.mixup, cutmix_alpha=options.cutmix, label_smoothing=0.0, num_classes=num_classes
        )

    def mix(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return mixed images, and [batch, classes] probabilities in place of labels."""
        before = np.random.get_state()
        # timm draws from NumPy's global generator, which is not ours to leave changed.
        np.random.seed(np.random.SeedSequence((self._seed, step, 3)).generate_state(4))
        try:
            mixed: tuple[Tensor, Tensor] = self._mixup(images, labels)
        finally:
            np.random.set_state(before)
        return mixed
