"""Importance tables: what the score loses when a segment replaces its layers."""

from __future__ import annotations

from layerfold.importance.estimate import (
    check_method,
    default_method,
    estimate_importance,
    trains,
    weights_hash,
)
from layerfold.importance.finalists import FinalistScores
from layerfold.importance.journal import remove_journal
from layerfold.importance.requests import Request, list_requests
from layerfold.importance.wholes import WholeScores

__all__ = [
    "FinalistScores",
    "Request",
    "WholeScores",
    "check_method",
    "default_method",
    "estimate_importance",
    "list_requests",
    "remove_journal",
    "trains",
    "weights_hash",
]
