"""Items of a Dataset of the user's own: images that are what a network takes, and classes that it has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from layerfold.errors import DataError


def image_of(value: Any, input_shape: tuple[int, int, int], where: str) -> Tensor:
    """Return an image as float32 on the CPU.

    Args:
        value: what the Dataset gave: a float tensor, normalised.
        input_shape: (channels, height, width).
        where: the item, for the error.

    Raises:
        DataError: no tensor, another shape or order, whole numbers in place of normalised values, NaN or infinity.
    """
    if not isinstance(value, Tensor):
        remedy = "torch.from_numpy makes it one" if type(value).__name__ == "ndarray" else "give one, normalised"
        raise DataError(f"{where}: expected a tensor {input_shape}, found {type(value).__name__}; {remedy}")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise DataError(f"{where}: expected a dense tensor, found one that is sparse, quantised or without values")
    shape = tuple(value.shape)
    if shape != input_shape:
        raise DataError(f"{where}: expected a tensor {input_shape}, found {shape}{_order_hint(shape, input_shape)}")
    if not value.is_floating_point():
        raise DataError(
            f"{where}: holds {value.dtype}, and images must be normalised floats: scale them to 0..1, "
            "subtract the mean, divide by the deviation"
        )
    image = value.detach().cpu().float()
    if not bool(torch.isfinite(image).all()):
        raise DataError(f"{where}: holds pixels that are NaN or infinite; repair or leave it out")
    return image


def class_of(value: Any, num_classes: int, where: str) -> int:
    """Return a class as a number.

    Raises:
        DataError: not one whole number, or outside 0..num_classes-1.
    """
    try:
        number = value.item() if hasattr(value, "item") else value
        label = int(number)
        is_whole = label == number and not isinstance(number, str)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        is_whole = False
    if not is_whole:
        shape = getattr(value, "shape", None)
        found = f"a {type(value).__name__} of shape {tuple(shape)}" if shape else f"{str(value)[:40]!r}"
        raise DataError(f"{where}: expected the number of a class, found {found}")
    if not 0 <= label < num_classes:
        raise DataError(f"{where}: label {label} is outside 0..{num_classes - 1}")
    return label


def _order_hint(shape: tuple[int, ...], input_shape: tuple[int, int, int]) -> str:
    if len(shape) == 3 and (shape[2], shape[0], shape[1]) == input_shape:
        return "; channels come first: permute(2, 0, 1)"
    if len(shape) == 2 and input_shape == (1, *shape):
        return "; add the channel: unsqueeze(0)"
    if len(shape) == 3 and shape[1:] == input_shape[1:]:
        return f"; the network takes {input_shape[0]} channel{'s' if input_shape[0] > 1 else ''}"
    return ""
