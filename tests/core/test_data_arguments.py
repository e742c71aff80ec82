"""The arguments that name model and images are read without torch, and refused in one line."""

from __future__ import annotations

import argparse

import pytest

from layerfold.cli._sources import add_data_arguments, add_model_arguments, parse_channel_values, parse_shape
from layerfold.errors import UsageError


@pytest.mark.parametrize(
    ("text", "shape"), [("3x224x224", (3, 224, 224)), ("1X64x48", (1, 64, 48)), (" 3x32x32 ", (3, 32, 32))]
)
def test_shape_is_channels_height_width(text: str, shape: tuple[int, int, int]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "224", "3x224", "3x224x224x1", "3x0x224", "3x-1x2", "axbxc", "3x2.5x2", "3x²x2"])
def test_bad_shape_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--input .*3x224x224$"):
        parse_shape(text)


def test_channel_values_are_one_number_a_channel() -> None:
    assert parse_channel_values("0.5,0.25,1e-1", "--mean") == (0.5, 0.25, 0.1)
    assert parse_channel_values("0.5", "--mean") == (0.5,)


def test_bad_channel_values_name_their_option() -> None:
    with pytest.raises(UsageError, match=r"^--std 0\.5;0\.5: "):
        parse_channel_values("0.5;0.5", "--std")


def test_arguments_left_out_are_none_so_that_the_model_decides() -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    add_data_arguments(parser)
    parsed = parser.parse_args(["timm:mobilenetv2_100", "--data", "mnist5k"])
    assert (parsed.model, parsed.data) == ("timm:mobilenetv2_100", "mnist5k")
    left_out = ("weights", "num_classes", "input", "mean", "std", "interpolation", "crop_pct", "holdout", "image_cache")
    assert [getattr(parsed, name) for name in left_out] == [None] * len(left_out)
    assert parsed.download is False
