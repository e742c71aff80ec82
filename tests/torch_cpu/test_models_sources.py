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


OTHER_FILES = {
    "net.onnx": "is an ONNX file, which layerfold writes and times but does not read as a model yet",
    "net.pth": "is a file of weights, and no model",
    "net.safetensors": "and this file as weights",
    "net.ckpt": "is a file of weights",
    "net.engine": "is a TensorRT engine",
    "net.h5": "is an HDF5 file",
    "net.pt2": "is an exported program",
    "net.py": "give net.py:FUNCTION",
    "net.py:": "no name of a function",
    "net.py:make()": "no name of a function",
}


@pytest.mark.parametrize("source", OTHER_FILES)
def test_file_that_is_no_model_is_told_what_it_is_not_a_name_of_a_library(source: str) -> None:
    with pytest.raises(UsageError, match=r"^MODEL='net[^\n]*$") as caught:
        load_model(source)
    assert OTHER_FILES[source] in str(caught.value)
    assert "nearest" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "timm:hf-hub:timm/resnet18.a1_in1k",
        "timm:hf_hub:timm/resnet18",
        "hf-hub:timm/resnet18",
        "timm:timm/resnet18",
        "https://example.org/net.pth",
        "huggingface:microsoft/resnet-50",
        "hub:pytorch/vision",
        "s3://bucket/net.pth",
    ],
)
def test_names_on_hubs_are_refused_without_asking_the_network(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(UsageError, match=r"^MODEL=[^\n]*: nothing is downloaded; "):
        load_model(source)


def test_tag_of_a_timm_model_is_known_or_refused_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    assert load_model("timm:mobilenetv2_100.ra_in1k").weights_sha256 is None
    with pytest.raises(UsageError, match="timm knows no tag 'ra_in1l' of mobilenetv2_100; nearest: ra_in1k"):
        load_model("timm:mobilenetv2_100.ra_in1l")


@pytest.mark.parametrize("source", ["x" * 5000, "timm:" + "x" * 5000, "torchvision:" + "x" * 5000, "timm:a\nb", "\0"])
def test_odd_names_are_one_short_line(source: str) -> None:
    with pytest.raises(UsageError, match=r"^MODEL=[^\n]{1,300}$"):
        load_model(source)


MORE_FACTORIES = """
import torch
from torch import nn

def body(last):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), *last)
    net.pretrained_cfg = {"input_size": (3, 8, 8)}
    return net

def conv_head(num_classes=4):
    return body([nn.Conv2d(8, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()])

def linear_inside():
    return body([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 99), nn.ReLU(), nn.Unflatten(1, (99, 1, 1)),
                 nn.Conv2d(99, 6, 1), nn.Flatten()])

def maps(num_classes=3):
    return body([])

def fixed():
    return body([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)])

def half():
    return fixed().half()

def parallel():
    return nn.DataParallel(fixed())

def double_by_default():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return fixed()

def configured(**config):
    net = fixed()
    net.pretrained_cfg = CONFIG
    return net

def state():
    return fixed().state_dict()

def two():
    return fixed(), "transform"

def nothing():
    pass

def a_class():
    return nn.Conv2d

def scripted():
    return torch.jit.script(fixed())

def lazy():
    return nn.Sequential(nn.LazyConv2d(8, 3))
"""


def more(tmp_path: Path, config: object = None) -> str:
    path = tmp_path / "more.py"
    path.write_text(f"inf = float('inf')\nCONFIG = {config!r}\n{MORE_FACTORIES}")
    return str(path)


@pytest.mark.parametrize(
    ("factory", "asked", "expected"),
    [
        ("conv_head", None, 4),
        ("conv_head", 7, 7),
        ("linear_inside", None, 6),
        ("maps", None, None),
        ("maps", 5, 5),
        ("fixed", 4, 4),
        ("half", None, 4),
        ("parallel", None, 4),
    ],
)
def test_number_of_classes_is_what_the_network_answers(
    tmp_path: Path, factory: str, asked: int | None, expected: int | None
) -> None:
    loaded = load_model(f"{more(tmp_path)}:{factory}", num_classes=asked)
    assert loaded.num_classes == expected
    assert {each.dtype for each in loaded.module.parameters()} == {torch.float32}
    assert not isinstance(loaded.module, nn.DataParallel)
    assert ("is float16, converted to float32" in loaded.note) == (factory == "half")


@pytest.mark.parametrize("source", ["torchvision:squeezenet1_1", "timm:mobilenetv2_035"])
def test_number_of_classes_of_libraries_is_the_one_asked_for(source: str) -> None:
    assert load_model(source, num_classes=9).num_classes == 9


def test_number_of_classes_that_a_factory_ignores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^num_classes=7: MODEL=[^\n]* answers with 4 outputs; leave num_classes out"):
        load_model(f"{more(tmp_path)}:fixed", num_classes=7)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("state", "returned a state_dict; build the module"),
        ("two", "returned a tuple (Sequential, str)"),
        ("nothing", "returned None"),
        ("a_class", "returned the class Conv2d, not an object of it"),
        ("scripted", "is TorchScript"),
        ("lazy", "has no shape yet"),
    ],
)
def test_what_a_factory_returns_must_be_a_module_to_work_on(tmp_path: Path, factory: str, says: str) -> None:
    with pytest.raises(UsageError, match=r"^MODEL=[^\n]*$") as caught:
        load_model(f"{more(tmp_path)}:{factory}")
    assert says in str(caught.value)


def test_state_of_torch_that_a_users_file_changes_is_put_back(tmp_path: Path) -> None:
    loaded = load_model(f"{more(tmp_path)}:double_by_default")
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)
    assert next(loaded.module.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"input_size": "3x8x8"}, "input_size='3x8x8'"),
        ({"input_size": (3, 8)}, "must be (channels"),
        ({"input_size": (3, 10**6, 10**6)}, "holds more than"),
        ({"input_size": (3, 0, 8)}, "must be at least 1"),
        ({"mean": "0.5"}, "mean='0.5'"),
        ({"mean": (None,)}, "must be numbers"),
        ({"std": (0.1, 0, 0.1)}, "above 0"),
        ({"std": (1, float("inf"), 1)}, "must be numbers"),
        ({"crop_pct": 7}, "crop_pct=7"),
        ({"crop_pct": "1"}, "crop_"),
        ({"interpolation": 3}, "interpolation=3"),
    ],
)
def test_settings_of_a_model_are_checked(tmp_path: Path, config: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=r"^MODEL=[^\n]*$") as caught:
        load_model(f"{more(tmp_path, config)}:configured")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 10**9},
        {"in_channels": 10**6},
        {"num_classes": True},
        {"num_classes": "7"},
        {"in_channels": 3.0},
        {"weights": 3},
        {"weights_key": 1},
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_built(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=rf"^{next(iter(arguments))}=[^\n]*$"):
        load_model("timm:mobilenetv2_035", **arguments)  # type: ignore[arg-type]
