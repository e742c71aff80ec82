"""Train form and deploy form: the same function before and after merging."""

from __future__ import annotations

from layerfold.merge.deploy_form import merge_network
from layerfold.merge.train_form import build_train_form

__all__ = ["build_train_form", "merge_network"]
