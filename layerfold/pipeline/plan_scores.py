"""What decides between plans beside the sum of importances, as the settings of a compression ask for it."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from layerfold.data import ImageData
from layerfold.graph import Network
from layerfold.importance import FinalistScores, WholeScores
from layerfold.importance.finalists import STEPS
from layerfold.pipeline.options import CompressOptions

_MOST_SHARE = 0.25
"""Of the finetuning's steps, that one finalist may take: a shorter finetuning is not worth the choice."""


def whole_scores(model: nn.Module, net: Network, data: ImageData, options: CompressOptions) -> WholeScores | None:
    """Return the score of plans before any training, or None where the solver's plan is taken as it is."""
    if options.fastest or not options.whole_plans:
        return None
    return WholeScores(
        model, net, data, holdout_images=options.importance_images, seed=options.seed, device=options.train_device
    )


def finalist_steps(options: CompressOptions, data: ImageData) -> int:
    """Return the steps for which each finalist is finetuned; 0 where none is wanted or worth it."""
    if not options.finetune_epochs or not data.is_labelled or options.fastest or not options.whole_plans:
        return 0
    if options.finalist_steps is not None:
        return options.finalist_steps
    in_all = options.finetune_epochs * len(data.loader("train", options.batch_size, drop_last=True))
    return STEPS if _MOST_SHARE * in_all >= STEPS else 0


def finalist_scores(
    model: nn.Module, net: Network, data: ImageData, options: CompressOptions, *, progress: bool
) -> FinalistScores | None:
    """Return the score of plans after a short finetuning, or None where none is wanted or worth it."""
    steps = finalist_steps(options, data)
    if not steps:
        return None
    return FinalistScores(
        model,
        net,
        data,
        replace(options.finetune, steps=steps),
        holdout_images=options.importance_images,
        device=options.train_device,
        progress=progress,
    )
