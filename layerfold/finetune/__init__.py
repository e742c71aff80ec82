"""Training with or without a teacher, scoring, and BatchNorm recalibration."""

from __future__ import annotations

from layerfold.finetune._answers import check_answers, first_images
from layerfold.finetune._batch_norm import (
    FINETUNED,
    NO_BATCH_NORM,
    ORIGINAL,
    RECALIBRATED,
    averaging_batch_norm,
    has_batch_norm,
    recalibrate_batch_norm,
)
from layerfold.finetune._device import check_device
from layerfold.finetune._memory import is_out_of_memory
from layerfold.finetune._presets import PRESETS, preset
from layerfold.finetune._processes import ending_together, is_main_process
from layerfold.finetune._report import EpochRow, FinetuneReport
from layerfold.finetune._scores import Scores, check_labels, evaluate_network
from layerfold.finetune._train import finetune_merged, finetune_network, float_checkpoint, train_network
from layerfold.finetune._trainable import check_trainable, unfreeze_parameters
from layerfold.options import FinetuneOptions

__all__ = [
    "FINETUNED",
    "NO_BATCH_NORM",
    "ORIGINAL",
    "PRESETS",
    "RECALIBRATED",
    "EpochRow",
    "FinetuneOptions",
    "FinetuneReport",
    "Scores",
    "averaging_batch_norm",
    "check_answers",
    "check_device",
    "check_labels",
    "check_trainable",
    "ending_together",
    "evaluate_network",
    "finetune_merged",
    "finetune_network",
    "first_images",
    "float_checkpoint",
    "has_batch_norm",
    "is_main_process",
    "is_out_of_memory",
    "preset",
    "recalibrate_batch_norm",
    "train_network",
    "unfreeze_parameters",
]
