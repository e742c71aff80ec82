"""timm's optimizers by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from layerfold.errors import OptionalDependencyError, UsageError

if TYPE_CHECKING:
    from layerfold.options.finetune import FinetuneOptions


def make_optimizer(model: nn.Module, options: FinetuneOptions) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name; weight decay is on weights of convs and linear layers only.

    Raises:
        OptionalDependencyError: it is in a package that is not installed.
        UsageError: it needs second derivatives.
    """
    from timm.optim._optim_factory import create_optimizer_v2

    try:
        made: torch.optim.Optimizer = create_optimizer_v2(
            model,
            options.optimizer,
            lr=options.highest_learning_rate,
            momentum=0.9,
            weight_decay=options.actual_weight_decay,
        )
    except (ImportError, AssertionError, NameError) as error:  # timm asserts that apex and bitsandbytes are there
        raise OptionalDependencyError(
            f"optimizer={options.optimizer!r}: needs a package that is not installed ({error or 'see timm'}); install "
            "it, or take another optimizer"
        ) from error
    if getattr(made, "is_second_order", False):
        raise UsageError(
            f"optimizer={options.optimizer!r}: needs second derivatives, which are not computed here; take another one"
        )
    return made
