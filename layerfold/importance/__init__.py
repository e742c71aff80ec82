"""Importance tables: what the score loses when a segment replaces its layers."""

from __future__ import annotations

from layerfold.importance.estimate import (
    check_method,
    default_method,
    estimate_importance,
    trains,
    weights_hash,
)
from layerfold.importance.estimators import Estimator, EstimatorBase, Training, estimator_names
from layerfold.importance.finalists import FinalistScores
from layerfold.importance.journal import remove_journal
from layerfold.importance.requests import Request, list_requests
from layerfold.importance.scores import ScoresByName
from layerfold.importance.subject import Subject
from layerfold.importance.wholes import WholeScores
from layerfold.options.importance import Refinement

__all__ = [
    "Estimator",
    "EstimatorBase",
    "FinalistScores",
    "Refinement",
    "Request",
    "ScoresByName",
    "Subject",
    "Training",
    "WholeScores",
    "check_method",
    "default_method",
    "estimate_importance",
    "estimator_names",
    "list_requests",
    "remove_journal",
    "trains",
    "weights_hash",
]
