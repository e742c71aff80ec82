"""Models by name or from the user's file, with weights from a file; nothing is ever downloaded."""

from __future__ import annotations

from layerfold.models._load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
