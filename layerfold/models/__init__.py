"""Models by name or from the user's file, with weights from a file; nothing is ever downloaded."""

from __future__ import annotations

from layerfold.models._load import LoadedModel, load_model
from layerfold.models._weights import load_weights, read_weights

__all__ = ["LoadedModel", "load_model", "load_weights", "read_weights"]
