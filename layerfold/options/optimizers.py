"""timm's optimizers by name, and the settings that are known to suit two of them. No torch here."""

from __future__ import annotations

from importlib import import_module

from layerfold.errors import nearest_names

LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-3}
"""At 128 images per step; of the optimizers for which one is known to suit."""

WEIGHT_DECAYS = {"sgd": 1e-4, "adamw": 0.02}


def unknown_optimizer(name: str) -> str:
    """Return why there is no such optimizer, or ``""`` if timm has it."""
    if name in LEARNING_RATES:
        return ""
    known = [str(each) for each in import_module("timm.optim._optim_factory").list_optimizers()]
    # timm wraps any of them in Lookahead.
    if name.removeprefix("lookahead_") in known:
        return ""
    return f"timm has no such optimizer{nearest_names(name, known)}"
