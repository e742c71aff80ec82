"""Random images to run a network on: never zeros, on which a network may divide by zero and hide what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def example_images(
    shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", seed: int = 0
) -> torch.Tensor:
    """Return the same random values at every call: standard normal, or for whole numbers and truth values 0 and 1.

    Args:
        shape: any, for images [N, C, H, W].
        dtype, device: of the result.
        seed: another one gives other values.
    """
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(tuple(shape), generator=generator).to(device=device, dtype=dtype)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(device=device, dtype=dtype)


def varied(value: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """Return a tensor as it is, or random values of its shape where all of its own are equal or one is not finite.

    Callers give zeros where only the shape matters to them.
    """
    if not value.is_floating_point() or (_is_varied(value) and bool(torch.isfinite(value).all())):
        return value
    return example_images(value.shape, dtype=value.dtype, device=value.device, seed=seed)


def image_ranges(shape: Sequence[int], *, seed: int = 0) -> torch.Tensor:
    """Return random images [N, ...], each in another range of numbers than the one before.

    0 to 255, standard normal, 0 to 1, small; so that a missing scaling shows, whatever range a network was made for.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(tuple(shape), generator=generator)
    images = []
    for index, image in enumerate(drawn):
        kind = (index + seed) % 4
        if kind in (1, 3):
            image = torch.randn(image.shape, generator=generator) * (1 if kind == 1 else 0.02)
        images.append(255 * image if kind == 0 else image)
    return torch.stack(images)


def _is_varied(value: torch.Tensor) -> bool:
    return value.numel() < 2 or not bool((value == value.reshape(-1)[0]).all())
