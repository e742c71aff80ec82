"""Ways to estimate an importance, one file each."""

from __future__ import annotations

from layerfold.importance.estimators.base import EstimatorBase
from layerfold.importance.estimators.distill import Distill
from layerfold.importance.estimators.finetune import Finetune
from layerfold.importance.estimators.protocol import Estimator, Training
from layerfold.importance.estimators.recalibrate import Recalibrate
from layerfold.importance.estimators.registry import ESTIMATORS, estimator_names
from layerfold.importance.estimators.shared import Shared
from layerfold.importance.estimators.taylor import Taylor

__all__ = [
    "ESTIMATORS",
    "Distill",
    "Estimator",
    "EstimatorBase",
    "Finetune",
    "Recalibrate",
    "Shared",
    "Taylor",
    "Training",
    "estimator_names",
]
