"""How a network is quantised after training. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from layerfold.settings import check_settings, setting

RangeMethod = Literal["minmax", "percentile", "mse"]
_USUAL_IMAGES = 300
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)


@dataclass(frozen=True, kw_only=True)
class QuantiseOptions:
    """How a float32 network becomes one in int8.

    Attributes:
        calibration_images: images without labels that the network is run on, at least 1, as many as there are to be;
            None for as many as there are, 300 at most.
        method: how the range of each feature map is chosen: ``minmax`` its extremes, ``percentile`` all but the
            outermost values (``percentile``), ``mse`` the range whose quantised values differ least.
        percentile: share of the values that ``percentile`` keeps, in percent, 50..100.
        symmetric: int8 feature maps with zero points of zero, as TensorRT wants them; uint8 with free zero points
            otherwise, which ONNX Runtime and OpenVINO compute in integers throughout. An engine is built from either.
        weight_bits: 8, or 7 for x86 processors without VNNI, which add two products in 16 bits and may overflow.
        bias_correction: set biases so that the mean of each output channel is that of the float network.
        equalisation: share ranges between the channels of two convs that follow each other, where that helps.

    Example:
        >>> options = lf.QuantiseOptions(method="minmax", calibration_images=100)
        >>> options.bias_correction
        True
    """

    calibration_images: int | None = setting(
        None, least=1, metavar="N", help="images that the ranges of feature maps are read from"
    )
    method: RangeMethod = setting("mse", choices=RANGE_METHODS, help="how the range of each feature map is chosen")
    percentile: float = setting(99.99, least=50, most=100, metavar="P", help="share of the values that are kept")
    symmetric: bool = False
    weight_bits: int = setting(8, least=7, most=8, metavar="N", help="7 for x86 processors without VNNI")
    bias_correction: bool = True
    equalisation: bool = True

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def images_wanted(self) -> int | None:
        """How many images there must be; None for any number."""
        return self.calibration_images

    @property
    def images_at_most(self) -> int:
        """How many images are taken."""
        return _USUAL_IMAGES if self.calibration_images is None else self.calibration_images
