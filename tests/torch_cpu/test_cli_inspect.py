"""``inspect``: what it counts is what the network is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layerfold.cli import main
from layerfold.cli._inspect_json import inspect_json
from layerfold.cli._inspect_text import inspect_text
from layerfold.graph import trace_network
from layerfold.models import load_model

_FACTORY = """
from torch import nn


class Net(nn.Sequential):
    pretrained_cfg = {"input_size": (2, 16, 16)}


def make(width=4):
    return Net(nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
               nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
               nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def without_convs():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2))


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


def test_text_names_barriers_with_their_reasons(
    factory: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # lines are as wide as the terminal
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
        (["{factory}:without_convs"], "has no conv in any chain, so there is nothing to merge; give a CNN"),
        (["{factory}:make", "--input", "3x16x16"], "does not run through Net"),
        (["torchvision:alexnet", "--input", "3x8x8"], "does not run through AlexNet"),
        (["{factory}:make", "--solution", "none.json"], "none.json: no such file"),
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


def _solution(tmp_path: Path, **fields: object) -> str:
    path = tmp_path / "solution.json"
    path.write_text(json.dumps({"act_pos": [], "merge_pos": [], **fields}))
    return str(path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"merge_pos": [5]}, "merge_pos holds 5; this network has positions 1..4"),
        ({"act_pos": [1], "merge_pos": [2]}, "act_pos=[1]: not in merge_pos"),
        ({"network_hash": "0123456789abcdef"}, "was made for a network of hash 0123456789abcdef"),
        ({"merge_pos": [-1]}, "merge_pos.0=-1: expected"),
    ],
)
def test_solution_that_does_not_fit_is_one_line_and_exit_2(
    factory: str, tmp_path: Path, fields: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = tmp_path / "net.svg"
    arguments = ["--solution", _solution(tmp_path, **fields), "--svg", str(svg)]
    assert main(["inspect", f"{factory}:make", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not svg.exists()


def test_solution_across_a_residual_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["torchvision:resnet18", "--input", "3x64x64", "--solution", _solution(tmp_path, merge_pos=[2, 4])]
    assert main(["inspect", *arguments]) == 2
    captured = capsys.readouterr()
    assert "segment (2, 4) crosses the residual" in captured.err
    assert captured.out == ""


def test_solution_shows_what_raises_multiply_adds(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 2→4→4 channels in two 3x3 convs become one 5x5 of 2→4: 72 + 144 taps per pixel become 200.
    arguments = ["inspect", f"{factory}:make", "--solution", _solution(tmp_path, merge_pos=[2, 3, 4])]
    assert main([*arguments, "--brief"]) == 0
    text = capsys.readouterr().out
    assert "1..2    5×5, 2→4" in text
    assert "0 of 1 merged segments raise multiply-adds" in text
    # 64→64→64 in the same way: 2 * 9 taps per pixel and pair of channels become 25.
    arguments = ["inspect", "torchvision:resnet18", "--input", "3x64x64", "--json", "--solution"]
    assert main([*arguments, _solution(tmp_path, merge_pos=[3, *range(4, 18)])]) == 0
    (merged,) = json.loads(capsys.readouterr().out)["merged"]
    pixels, channels = 16 * 16, 64
    assert (merged["start"], merged["end"]) == (1, 3)
    assert merged["before_macs"] == 2 * 9 * pixels * channels * channels
    assert merged["raises_macs_by"] == (25 - 18) * pixels * channels * channels
    assert main([*[a for a in arguments if a != "--json"], str(tmp_path / "solution.json")]) == 0
    assert "1 of 1 merged segments raise multiply-adds, by 7.34 M in all" in capsys.readouterr().out


def test_reasons_that_repeat_are_one_line_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "timm:efficientnet_b0", "--brief"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 50  # of 44 barriers in 47 chains
    barriers = text.partition("barriers")[2]
    assert "16  squeeze-and-excitation  multiplies a feature map" in barriers
    assert "2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57, 62, 67, 72, 77" in barriers
    assert "66.5 % of multiply-adds lie in such segments; 0 % without adding any" in text
    assert "why not more   16 of 16 blocks end at squeeze-and-excitation" in text


def test_table_of_layers_shows_branches_and_gates_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "timm:regnety_004", "--input", "3x64x64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    gate = lines.index("    ── squeeze-and-excitation s1.b1.se (layers 4, 5: 1×1 convs on 1×1 maps)")
    assert lines[gate + 1].split()[:2] == ["6", "s1.b1.conv3.conv"]
    assert lines[gate + 2] == "    ── addition, relu"
    assert lines[gate + 3] == "    ── branch 1 of 2"
    shown = [line.split()[0] for line in lines[1 : lines.index("")] if not line.lstrip().startswith("──")]
    assert len(shown) == len(set(shown)) == 85 - 2 * 16


def test_notes_of_a_network_are_printed() -> None:
    net = trace_network(load_model("torchvision:alexnet").module, torch.zeros(1, 3, 64, 64))
    net = replace(net, notes=("head: kept whole as a leaf: data-dependent control flow at file.py:12",))
    assert "notes\n  head: kept whole as a leaf" in inspect_text(net, net.candidates(), None, "alexnet")
    assert inspect_json(net, net.candidates(), None, "alexnet")["notes"] == list(net.notes)


def test_documentation_names_every_key_of_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solution = _solution(tmp_path, merge_pos=[3, *range(4, 18)])
    assert main(["inspect", "torchvision:resnet18", "--input", "3x64x64", "--solution", solution, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    page = (Path(__file__).resolve().parents[2] / "docs" / "inspect.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    assert documented == set(found)
