"""Ways to estimate an importance, one file each."""

from __future__ import annotations

from layerfold.importance.estimators.distill import Distill
from layerfold.importance.estimators.finetune import Finetune
from layerfold.importance.estimators.protocol import Estimator, Training
from layerfold.importance.estimators.recalibrate import Recalibrate
from layerfold.importance.estimators.shared import Shared
from layerfold.importance.estimators.taylor import Taylor

ESTIMATORS: dict[str, type[Estimator]] = {
    "shared": Shared,
    "recalibrate": Recalibrate,
    "distill": Distill,
    "finetune": Finetune,
    "taylor": Taylor,
}
"""By the name that ``method`` and ``--method`` know them by."""

__all__ = ["ESTIMATORS", "Distill", "Estimator", "Finetune", "Recalibrate", "Shared", "Taylor", "Training"]
