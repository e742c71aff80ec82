"""``inspect``: what it counts is what the network is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from layerfold.cli import main
from layerfold.errors import SolutionError
from layerfold.graph import Network, trace_network
from layerfold.graph.counts import count_merge_sets
from layerfold.models import load_model

_FACTORY = """
from torch import nn


class Net(nn.Sequential):
    pretrained_cfg = {"input_size": (2, 16, 16)}


def make(width=4):
    return Net(nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
               nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
               nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def untraceable():
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    return Loops()
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """Return the path of a file with model factories."""
    path = tmp_path / "net.py"
    path.write_text(_FACTORY)
    return str(path)


def test_residuals_and_shortcuts_of_a_resnet_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "torchvision:resnet18", "--input", "3x64x64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = load_model("torchvision:resnet18").module
    assert found["num_params"] == sum(parameter.numel() for parameter in model.parameters())
    assert len(found["layers"]) == 17
    assert sum(not residual["shortcut"] for residual in found["residuals"]) == 5
    assert sum(bool(residual["shortcut"]) for residual in found["residuals"]) == 3
    assert found["barriers"][0]["kind"] == "MaxPool2d"


def test_text_names_barriers_with_their_reasons(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{factory}:make"]) == 0
    text = capsys.readouterr().out
    assert "layers         4 in 2 chains" in text
    assert "input          2x16x16" in text
    assert "max pool      takes a maximum, which is not linear  2 (5)" in text.partition("barriers")[2]
    assert "why not more   1 × max pool" in text


def test_exclude_takes_a_module_out_of_the_chains(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{factory}:make", "--exclude", "3", "--json"]) == 0
    assert [layer["name"] for layer in json.loads(capsys.readouterr().out)["layers"]] == ["0", "6", "8"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["timm:mobilnetv2_100"], "nearest: mobilenetv2_100"),
        (["torchvision:resnet19"], "torchvision has no classifier 'resnet19'"),
        (["timm:mobilenetv2_035", "--input", "32x32"], "--input 32x32: give channels x height x width"),
        (["timm:mobilenetv2_035", "--weights", "none.safetensors"], "none.safetensors: no such file"),
        (["{factory}:mak"], "has no function 'mak'; nearest: make"),
        (["{factory}:make", "--exclude", "conv"], "exclude='conv': the model has no module of that name"),
        (["{factory}:untraceable"], "cannot be traced"),
        (["{factory}:make", "--solution", "none.json"], "none.json: cannot be read"),
        (["{factory}:make", "--svg", "net.png"], "--svg net.png: expected a name that ends in .svg"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    factory: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", *(argument.replace("{factory}", factory) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_solution_of_another_network_is_refused(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "solution.json").write_text('{"act_pos": [9], "merge_pos": [9]}')
    assert main(["inspect", f"{factory}:make", "--solution", str(tmp_path / "solution.json")]) == 2
    assert "act_pos holds 9; this network has positions 1..4" in capsys.readouterr().err


def _allowed(net: Network, stops: set[int]) -> bool:
    try:
        return all(max(s.conv.kernel_size) <= 5 or s.num_layers == 1 for s in net.segments_of(stops))
    except SolutionError:
        return False


@pytest.mark.parametrize("source", ["make", "residual"])
def test_number_of_merge_sets_matches_enumeration(factory: str, source: str) -> None:
    if source == "make":
        model, shape = load_model(f"{factory}:make").module, (2, 16, 16)
    else:
        model, shape = load_model("timm:mobilenetv2_035").module.blocks[:2], (16, 16, 16)
    net = trace_network(model, torch.zeros(1, *shape))
    ends = {chain.end for chain in net.chains}
    free = [position for position in range(1, len(net.layers) + 1) if position not in ends]
    subsets = itertools.chain.from_iterable(itertools.combinations(free, size) for size in range(len(free) + 1))
    expected = sum(_allowed(net, set(subset)) for subset in subsets)
    assert count_merge_sets(net, net.candidates(max_kernel=5)) == expected > 1
