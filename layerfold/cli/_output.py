"""How commands answer: a result as text or as JSON, on stdout."""

from __future__ import annotations

import json
import math
from typing import Any

from layerfold.terminal import results_stream, show

__all__ = ["json_text", "results_stream", "show", "show_json"]


def show_json(value: Any) -> None:
    """Print one JSON document; see :func:`json_text`."""
    show(json_text(value))


def json_text(value: Any) -> str:
    """Return one JSON document; a number that JSON does not have (NaN, infinity) is null."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
