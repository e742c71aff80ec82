"""Training with or without a teacher, scoring, and BatchNorm recalibration."""

from __future__ import annotations

from layerfold.finetune._batch_norm import recalibrate_batch_norm
from layerfold.finetune._options import FinetuneOptions
from layerfold.finetune._report import EpochRow, FinetuneReport
from layerfold.finetune._scores import Scores, evaluate_network, predict_logits
from layerfold.finetune._train import finetune_network

__all__ = [
    "EpochRow",
    "FinetuneOptions",
    "FinetuneReport",
    "Scores",
    "evaluate_network",
    "finetune_network",
    "predict_logits",
    "recalibrate_batch_norm",
]
