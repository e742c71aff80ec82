"""Models by name or from a file; wrong names are answered with the nearest ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from layerfold.errors import UsageError
from layerfold.models import load_model


def test_timm_model_comes_with_its_own_data_config() -> None:
    loaded = load_model("timm:tf_efficientnet_lite0")
    assert loaded.input_shape == (3, 224, 224)
    assert loaded.mean == loaded.std == (0.5, 0.5, 0.5)
    assert (loaded.crop_pct, loaded.interpolation, loaded.num_classes) == (0.875, "bicubic", 1000)
    assert (loaded.name, loaded.weights_sha256) == ("tf_efficientnet_lite0", None)
    assert not any(module.training for module in loaded.module.modules())


def test_channels_and_classes_reach_the_timm_factory() -> None:
    loaded = load_model("timm:mobilenetv2_050", num_classes=7, in_channels=1)
    assert loaded.input_shape == (1, 224, 224)
    assert (len(loaded.mean), len(loaded.std), loaded.num_classes) == (1, 1, 7)
    assert loaded.module(torch.zeros(1, 1, 32, 32)).shape == (1, 7)


def test_torchvision_model_names_the_size_it_was_made_for() -> None:
    loaded = load_model("torchvision:mobilenet_v2", num_classes=5)
    assert (loaded.input_shape, loaded.crop_pct, loaded.interpolation) == ((3, 224, 224), 0.875, "bilinear")
    assert loaded.num_classes == 5


def test_random_weights_are_the_same_at_every_call_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_model("timm:mobilenetv2_035").module.state_dict()
    assert torch.equal(torch.rand(3), expected)
    second = load_model("timm:mobilenetv2_035").module.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm:mobilnetv2_100", "nearest: mobilenetv2_100"),
        ("torchvision:resnet33", "nearest: resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classifier"),
        ("tim:mobilenetv2_100", "nearest: timm"),
        ("mobilenetv2_100", "nearest: timm:mobilenetv2_100"),
        ("missing.py:make", "no file missing.py"),
        ("", "give timm:NAME"),
    ],
)
def test_unknown_model_is_one_line_with_the_nearest_names(source: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_model(source)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_torchvision_says_that_it_takes_three_channels() -> None:
    with pytest.raises(UsageError, match="in_channels=1: torchvision models take 3 channels"):
        load_model("torchvision:resnet18", in_channels=1)


@pytest.mark.parametrize("name", ["num_classes", "in_channels"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name}=0: "):
        load_model("timm:mobilenetv2_035", **{name: 0})  # type: ignore[arg-type]


FACTORIES = """
from torch import nn
from neighbour import WIDTH

def plain():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.Flatten(), nn.Linear(8, 4))

def sized(num_classes=10, in_chans=3):
    model = nn.Sequential(nn.Conv2d(in_chans, 2, 3), nn.Flatten(), nn.Linear(8, num_classes))
    model.pretrained_cfg = {"input_size": (3, 4, 4), "mean": (0.1, 0.2, 0.3)}
    return model

def needy(depth):
    return nn.Identity()

def broken():
    raise ValueError("bad\\nnews")

def wrong():
    return 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 2\n")
    path = tmp_path / "nets.py"
    path.write_text(FACTORIES)
    return path


def test_factory_of_the_users_file_may_import_its_neighbours(user_file: Path) -> None:
    loaded = load_model(f"{user_file}:plain", num_classes=4)
    assert isinstance(loaded.module, nn.Sequential)
    assert (loaded.name, loaded.num_classes, loaded.input_shape) == ("plain", 4, (3, 224, 224))


def test_factory_gets_the_arguments_it_has_and_names_its_own_input(user_file: Path) -> None:
    loaded = load_model(f"{user_file}:sized", num_classes=6, in_channels=1)
    assert (loaded.input_shape, loaded.num_classes) == ((1, 4, 4), 6)
    assert loaded.mean == pytest.approx((0.2,))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("sizd", "nearest: sized"),
        ("needy", "needs 'depth'"),
        ("broken", "raised ValueError: bad news"),
        ("wrong", "returned a int, not a torch.nn.Module"),
    ],
)
def test_bad_factory_is_one_line(user_file: Path, factory: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_model(f"{user_file}:{factory}")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_that_fails_to_import_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nets.py"
    path.write_text("import no_such_package_here\n")
    with pytest.raises(UsageError, match="raised ModuleNotFoundError"):
        load_model(f"{path}:make")
