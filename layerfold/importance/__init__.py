"""Importance tables: what the score loses when a segment replaces its layers."""

from __future__ import annotations

from layerfold.importance.estimate import METHODS, SCORES, estimate_importance, weights_hash
from layerfold.importance.requests import Request, list_requests

__all__ = ["METHODS", "SCORES", "Request", "estimate_importance", "list_requests", "weights_hash"]
