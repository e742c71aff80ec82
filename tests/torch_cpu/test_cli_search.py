"""``layerfold search``: from the command to a solution that the other commands take, and every way to go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import layerfold as lf
from layerfold.cli import main
from tests.torch_cpu.search_networks import random_table

_FILE = """
import os
import signal

import torch
from torch import nn

_reads = 0


class Images(torch.utils.data.Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count, shape):
        self.targets, self.shape = [index % 2 for index in range(count)], shape

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        global _reads
        _reads += 1
        if _reads == int(os.environ.get("STOP_AT_READ", 0)):
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C would
        noise = torch.rand(self.shape, generator=torch.Generator().manual_seed(index))
        return noise + self.targets[index], self.targets[index]


def images(input_shape):
    return Images(80, input_shape), Images(16, input_shape)


def net():
    torch.manual_seed(0)
    layers = []
    for index in range(5):
        layers += [nn.Conv2d(8 if index else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


class Search:
    """Runs the command on a user's own file."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        (folder / "own.py").write_text(_FILE)
        self.model = [f"{folder}/own.py:net", "--input", "3x8x8"]
        self.data = ["--data", f"{folder}/own.py:images", "--batch-size", "16"]
        loaded = lf.load_model(self.model[0])
        self.net = lf.trace_network(loaded.module, torch.zeros(1, 3, 8, 8))
        random_table(self.net, 1).write(folder / "latency.csv")

    def __call__(self, *arguments: object, command: str = "search") -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main([command, *map(str, arguments)])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def short(self, *arguments: object) -> tuple[int, str, str]:
        return self(*self.model, *self.data, "--steps", 6, "--quiet", *arguments)


@pytest.fixture
def search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Search:
    return Search(tmp_path, capsys)


def test_images_without_labels_are_searched_with_the_original_as_teacher(search: Search) -> None:
    folder = search.folder
    (folder / "pictures").mkdir()
    for index in range(40):
        Image.effect_noise((8, 8), 10 + index).convert("RGB").save(folder / "pictures" / f"{index}.png")
    data = [
        "--data",
        f"images:{folder / 'pictures'}",
        "--batch-size",
        "16",
        "--steps",
        "4",
        "--quiet",
        "--keep-gates",
        "2",
        "-o",
        folder / "solution.json",
    ]
    code, _, said = search(*search.model, *data, "--no-teacher")
    assert code == 2
    assert "has no labels, and without a teacher there is nothing else to learn; leave out --no-teacher" in said
    code, out, _ = search(*search.model, *data, "--json")
    assert code == 0
    assert json.loads(out)["training"]["steps"] == 4
    assert lf.Solution.read(folder / "solution.json").network_hash == search.net.hash


def test_search_ends_in_a_solution_that_finetune_and_merge_take(search: Search) -> None:
    folder = search.folder
    code, out, _ = search.short(
        "--keep-gates", 2, "--weights-out", folder / "searched.safetensors", "--json", "-o", folder / "solution.json"
    )
    found = json.loads(out)
    assert code == 0
    assert [sum(gate["is_on"] for gate in found["gates"]), len(found["gates"])] == [2, 4]
    solution = lf.Solution.read(folder / "solution.json")
    assert solution.to_json() == found["solution"]
    assert solution.network_hash == search.net.hash
    assert not (folder / "solution.json.checkpoint").exists()
    searched = lf.load_model(search.model[0], weights=folder / "searched.safetensors").module.state_dict()
    assert load_file(folder / "searched.safetensors").keys() == searched.keys()
    original = lf.load_model(search.model[0]).module.state_dict()
    torch.save(original, folder / "original.pth")
    assert (
        search(
            *search.model,
            *search.data,
            "--weights",
            folder / "searched.safetensors",
            "--teacher-weights",
            folder / "original.pth",
            "--solution",
            folder / "solution.json",
            "--steps",
            2,
            "--quiet",
            "--fade",
            0.5,
            "-o",
            folder / "finetuned.safetensors",
            command="finetune",
        )[0]
        == 0
    )
    assert search(folder / "finetuned.safetensors", "-o", folder / "merged.safetensors", command="merge")[0] == 0


def test_budget_is_kept_by_the_tables_prediction(search: Search) -> None:
    folder = search.folder
    table = lf.LatencyTable.read(folder / "latency.csv")
    code, out, _ = search.short("--speedup", 1.1, "--latency", folder / "latency.csv", "-o", folder / "solution.json")
    solution = lf.Solution.read(folder / "solution.json")
    assert code == 0
    assert solution.predicted_ms == table.predict_ms(solution) <= table.original_ms / 1.1
    assert "as fast as the original's prediction" in out
    assert out.count("stays") + out.count("goes") == 4


def test_unreachable_budget_is_exit_3_and_names_the_least(search: Search) -> None:
    folder = search.folder
    arguments = ("--latency", folder / "latency.csv", "-o", folder / "solution.json")
    code, out, err = search.short("--budget", "1us", *arguments)
    assert (code, out) == (3, "")
    least_ms = float(err.split("the least predicted latency is ")[1].split(" ms")[0])
    assert not (folder / "solution.json").exists()
    assert search.short("--budget", f"{least_ms}ms", *arguments)[0] == 0


def test_interrupted_search_goes_on(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = search.folder
    arguments = [*search.model, *search.data, "--epochs", 3, "--keep-gates", 2, "--json"]
    assert search(*arguments, "-o", folder / "whole.json")[0] == 0
    monkeypatch.setenv("STOP_AT_READ", "200")
    code, out, err = search(*arguments, "-o", folder / "stopped.json")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "layerfold: interrupted; run the same command again to go on"
    monkeypatch.delenv("STOP_AT_READ")
    code, out, err = search(*arguments, "-o", folder / "stopped.json")
    assert code == 0
    assert json.loads(out)["training"]["resumed_from_step"] > 0
    assert "Searching: " in err
    assert (folder / "stopped.json").read_text() == (folder / "whole.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--keep-gates, --budget, --speedup, --pattern: give one of the four"),
        (["--keep-gates", "5"], "keep=5: must be a whole number from 0 to 4, the number of gates"),
        (["--keep-gates", "1.5"], "--keep-gates 1.5: must be a whole number of gates, or a share of them below 1"),
        (["--keep-gates", "-1"], "--keep-gates -1: a number from 0"),
        (["--keep-gates", "many"], "--keep-gates many: a number from 0"),
        (["--keep-gates", "1", "--budget", "4ms"], "not allowed with argument"),
        (["--speedup", "1.2"], "--latency: a budget needs the network's latency table"),
        (["--budget", "4 apples", "--latency", "{latency}"], "--budget 4 apples: a latency in ms"),
        (["--granularity", "layer", "--keep-gates", "1"], "invalid choice: 'layer'"),
        (["--pattern", "mobilenetv2_140-Z"], "nearest: mobilenetv2_140-"),
        (["--pattern", "mobilenetv2_140-A"], "is for MobileNetV2, one chain of 52 layers"),
        (["--pattern", "mobilenetv2_140-A", "--weights-out", "w.safetensors"], "trains nothing"),
        (["--pattern", "efficientnet_lite0", "--granularity", "slot"], "searches blocks; leave --granularity out"),
        (["--keep-gates", "1", "--weights-out", "w.pth"], "expected a name that ends in .safetensors"),
        (["--keep-gates", "1", "--anneal", "2"], "at most 1"),
    ],
    ids=str,
)
def test_bad_input_is_exit_2_and_one_line(search: Search, arguments: list[str], words: str) -> None:
    given = [each.format(latency=search.folder / "latency.csv") for each in arguments]
    code, out, err = search.short(*given, "-o", search.folder / "solution.json")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err
    assert not (search.folder / "solution.json").exists()


def test_search_without_images_says_so(search: Search) -> None:
    code, _, err = search(*search.model, "--keep-gates", 1, "-o", search.folder / "solution.json")
    assert code == 2
    assert "--data: a search trains the network" in err


def test_pattern_needs_neither_images_nor_training(search: Search) -> None:
    path = search.folder / "a.json"
    model: list[Any] = ["timm:mobilenetv2_140", "--input", "3x64x64"]
    code, out, _ = search(*model, "--pattern", "mobilenetv2_140-A", "-o", path)
    assert code == 0
    assert "layers       52 -> 40" in out
    assert lf.Solution.read(path).model == "timm:mobilenetv2_140"


def test_published_search_sets_granularity_and_number(search: Search) -> None:
    code, out, _ = search.short("--pattern", "efficientnet_lite0", "--json", "-o", search.folder / "solution.json")
    assert code == 0
    # One plain chain without strides is one block; 0.4 of one gate, rounded down, is none.
    assert [(gate["positions"], gate["is_on"]) for gate in json.loads(out)["gates"]] == [([1, 2, 3, 4], False)]
    assert lf.Solution.read(search.folder / "solution.json").act_pos == (5,)
