"""What a network answers: whatever is scored or trained here must give logits, and that is said before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layerfold.data import ImageData
from layerfold.errors import DataError, LayerfoldError, UsageError
from layerfold.finetune._layout import channels_last
from layerfold.finetune._memory import is_out_of_memory
from layerfold.finetune._modes import device_of, modes_kept
from layerfold.graph.alone import check_alone

_NEEDED = (
    "scoring and training need logits [images, classes]: {remedy}; inspect, profile, solve, verify, merge and "
    "export need none"
)
_PARTS_SHOWN = 4


def first_images(data: ImageData, count: int = 2) -> Tensor:
    """Return the first images of the holdout, as the model sees them: [count or fewer, channels, height, width]."""
    split = data.split("holdout")
    with torch.random.fork_rng(devices=[]):  # a Dataset of the user's own may draw random numbers
        return torch.stack([split[index][0] for index in range(min(count, len(split)))])


def check_answers(
    model: nn.Module,
    images: Tensor,
    *,
    argument: str = "model",
    num_classes: int | None = None,
    needs_finite: bool = True,
) -> int:
    """Refuse a network whose answers cannot be scored, by what it gives for some images.

    Args:
        model: run in eval mode, without gradients; its modes are put back.
        images: [images, channels, height, width]; real ones, since zeros hide much.
        argument: what the caller calls the model, for errors.
        num_classes: of the labels; the model must know as many. None where there are no labels.
        needs_finite: whether NaN and infinity are refused.

    Returns:
        The number of logits.

    Raises:
        UsageError: it fails on the images, gives something else than finite logits [images, classes], or answers one
            image by the others beside it.
        DataError: it knows fewer classes than the labels.
    """
    _check_dtype(model, argument)
    try:
        with modes_kept(model), torch.no_grad():
            model.eval()
            answer = model(channels_last(images.to(device_of(model))))
    except LayerfoldError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        advice = (
            "its forward must take images alone: wrap the model, or give its other arguments defaults"
            if isinstance(error, TypeError)
            else "give images of the size and channels that it was made for (--input)"
        )
        raise UsageError(f"{argument}: fails on images {list(images.shape)}: {cause}; {advice}") from error
    remedy = remedy_for(answer, len(images))
    if remedy is not None:
        raise UsageError(
            f"{argument}: answers images {list(images.shape)} with {describe(answer)}; {_NEEDED.format(remedy=remedy)}"
        )
    if needs_finite and not bool(answer.isfinite().all()):
        raise UsageError(
            f"{argument}: answers the first images of the data with NaN or infinity; see whether its "
            "weights are whole, and whether the images are in the range that it was trained on"
        )
    found = int(answer.shape[1])
    if num_classes is not None and found < num_classes:
        raise DataError(
            f"{argument}: gives {found} classes, and the data has {num_classes}; give a model with as many "
            "outputs (num_classes), or the data that it was trained on"
        )
    check_alone(model, images)
    return found


def remedy_for(answer: object, num_images: int) -> str | None:
    """Return what to do about an answer that is no logits [images, classes]; None where it is."""
    if not isinstance(answer, Tensor):
        return "wrap the model in a module that returns the logits alone"
    if answer.dim() == 4 and answer.shape[2:] == (1, 1):
        return "flatten the answer to [images, classes] (flatten(1))"
    if answer.dim() != 2 or answer.shape[0] != num_images:
        return "use the steps with your own training and scoring, or wrap the model to give one row per image"
    if not answer.is_floating_point():
        return "return the logits themselves, before argmax or rounding"
    if answer.shape[1] < 2:
        return "of a single output z make two classes: torch.cat([torch.zeros_like(z), z], 1)"
    return None


def describe(value: Any) -> str:
    """Return what a value is, tensors by shape, on a short line."""
    if isinstance(value, Tensor):
        kind = "a tensor" if value.is_floating_point() else f"a tensor of {str(value.dtype).removeprefix('torch.')}"
        return f"{kind} {list(value.shape)}"
    if isinstance(value, Mapping):
        parts = [f"{str(key)[:20]}: {_inner(part)}" for key, part in list(value.items())[:_PARTS_SHOWN]]
        return f"a {type(value).__name__} ({', '.join(parts)}{_more(value)})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts = [_inner(part) for part in value[:_PARTS_SHOWN]]
        return f"a {type(value).__name__} ({', '.join(parts)}{_more(value)})"
    return f"a {type(value).__name__}"


def _inner(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _more(value: Mapping[Any, Any] | Sequence[Any]) -> str:
    return f", and {len(value) - _PARTS_SHOWN} more" if len(value) > _PARTS_SHOWN else ""


def _check_dtype(model: nn.Module, argument: str) -> None:
    """Refuse weights that float32 images cannot go through."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise UsageError(
                f"{argument}: its weights are {kind} ({name}), and scoring and training are in float32; "
                "convert it (model.float()), and lower the precision where it is deployed (--precision)"
            )
