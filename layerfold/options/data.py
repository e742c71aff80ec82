"""How images are prepared and divided. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

from layerfold.settings import check_settings

MOST_ARRAY_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Preparation of images for a model, and their division into splits.

    Attributes:
        mean, std: normalisation per channel, images in 0..1; None for ImageNet's.
        interpolation, crop_pct: as in timm; None for bicubic and 0.875. Images that all have the input size already are
            neither resized nor cropped.
        num_classes: outputs of the model; labels must be below it. None for what the labels show.
        holdout: share of train (below 1) or number of images; None for 10 %, at most 2,000.
        seed: of the splits.
        max_array_bytes: a split whose decoded pixels need more is too large to be held in memory: without a cache it
            is decoded image by image, and its training images are cut at random, not shifted.
        download: whether torchvision or ``datasets`` may fetch what is not there.

    Example:
        >>> options = lf.DataOptions(mean=(0.5,), std=(0.25,), holdout=0.2)
        >>> options.holdout
        0.2
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    num_classes: int | None = None
    holdout: float | None = None
    seed: int = 0
    max_array_bytes: int = MOST_ARRAY_BYTES
    download: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
