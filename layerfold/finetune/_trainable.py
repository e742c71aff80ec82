"""Frozen parameters: which ones train is said, not found out afterwards."""

from __future__ import annotations

from torch import nn

from layerfold.errors import UsageError

_LONGEST_NAME = 60


def check_trainable(
    model: nn.Module, *, unfreeze: bool = False, keep_frozen: bool = False, argument: str = "model"
) -> None:
    """Refuse a network of which nothing would train, or of which only a part would and nobody said so.

    Checkpoints and factories often come with ``requires_grad=False`` from the code that made them: training such a
    network fails, or changes its head alone.

    Args:
        model: the network.
        unfreeze: all of it will be trained (:func:`unfreeze_parameters`).
        keep_frozen: what is frozen is to stay as it is; layers of merged segments too, each by itself.
        argument: what the caller calls the model.

    Raises:
        UsageError: all parameters are frozen and ``unfreeze`` is not given, or some are and neither is.
    """
    if unfreeze and keep_frozen:
        raise UsageError("unfreeze, keep_frozen: give one of the two (--unfreeze or --keep-frozen)")
    if unfreeze:
        return
    parameters = list(model.named_parameters())
    frozen = [name for name, parameter in parameters if not parameter.requires_grad]
    if not frozen:
        return
    count = f"{argument}: {len(frozen)} of {len(parameters)} parameters are frozen (requires_grad is False)"
    if len(frozen) == len(parameters):
        raise UsageError(
            f"{count}, so there is nothing to train; give --unfreeze (unfreeze=True) to train them all, "
            "or do without training (--no-finetune, --method recalibrate)"
        )
    if not keep_frozen:
        raise UsageError(
            f"{count}, such as {frozen[0][:_LONGEST_NAME]}; give --unfreeze (unfreeze=True) to train them "
            "all, which mends most of what merging changes, or --keep-frozen (keep_frozen=True) to leave "
            "them as they are"
        )


def unfreeze_parameters(model: nn.Module) -> None:
    """Let every parameter train, in place; what cannot have a gradient (integers) is left."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)
