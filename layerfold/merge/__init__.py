"""Train form and deploy form: the same function before and after merging; both as files."""

from __future__ import annotations

from layerfold.merge.deploy_form import MergedConv, merge_network
from layerfold.merge.fading import add_fading
from layerfold.merge.files import ACTIVATION_RANGES, LoadedForm, Recipe, load_form, save_form
from layerfold.merge.segment_ends import segment_ends
from layerfold.merge.train_form import build_train_form

__all__ = [
    "ACTIVATION_RANGES",
    "LoadedForm",
    "MergedConv",
    "Recipe",
    "add_fading",
    "build_train_form",
    "load_form",
    "merge_network",
    "save_form",
    "segment_ends",
]
