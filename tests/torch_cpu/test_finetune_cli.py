"""`layerfold finetune`: what is given counts over a preset, what is there is not lost, and all files are written."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import layerfold as lf
from layerfold.cli import build_parser, main
from layerfold.cli import finetune as finetune_command
from layerfold.merge import load_form
from tests.torch_cpu.small_training import no_file_longer_than

_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
_NEEDED = ["finetune", "timm:resnet18", "--data", "mnist5k", "--solution", "s.json", "-o", "out.safetensors"]


def options_of(*arguments: str) -> lf.FinetuneOptions:
    return finetune_command.options_of(build_parser().parse_args([*_NEEDED, *arguments]))


def test_nothing_given_is_the_default() -> None:
    assert options_of() == lf.FinetuneOptions(epochs=10)


def test_what_is_given_counts_over_the_preset() -> None:
    plain = options_of("--preset", "mobilenetv2-1.4")
    assert (plain.epochs, plain.batch_size, plain.warmup) == (180, 256, 0.0)
    changed = options_of(
        "--preset",
        "mobilenetv2-1.4",
        "--batch-size",
        "64",
        "--epochs",
        "3",
        "--no-augment",
        "--grad-clip",
        "0",
        "--ema",
        "0.99",
        "--milestones",
        "0.2,0.4",
        "--keep",
        "best",
    )
    assert (changed.batch_size, changed.epochs, changed.augment, changed.grad_clip_norm) == (64, 3, False, None)
    assert (changed.ema_decay, changed.milestones, changed.keep) == (0.99, (0.2, 0.4), "best")
    assert changed.learning_rate == plain.learning_rate


FACTORY = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from layerfold.data import ImageData

def network(num_classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

def data(**_):
    labels = torch.arange(48) % 3
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]
    split = TensorDataset(images, labels)
    return ImageData(name="made up", num_classes=3, input_shape=(3, 8, 8), train=split, holdout=split, test=split)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    factory = tmp_path / "factory.py"
    factory.write_text(FACTORY)
    lf.Solution(act_pos=(2,), merge_pos=(2,)).write(tmp_path / "solution.json")
    return [
        "finetune",
        f"{factory}:network",
        "--input",
        "3x8x8",
        "--data",
        f"{factory}:data",
        "--solution",
        str(tmp_path / "solution.json"),
        "--batch-size",
        "16",
        "--quiet",
        "-o",
        str(tmp_path / "out.safetensors"),
    ]


@pytest.mark.parametrize("change", ["model", "input_shape"])
def test_form_knows_its_network_where_a_solution_by_hand_names_none(
    change: str, command: list[str], tmp_path: Path, capsys: Any
) -> None:
    """Weights fit either way, so only the hash of the network tells."""
    assert main([*command, "--steps", "2"]) == 0
    factory, sidecar = tmp_path / "factory.py", tmp_path / "out.safetensors.json"
    if change == "model":
        factory.write_text(FACTORY.replace("nn.Conv2d(4, 4, 3)", "nn.Conv2d(4, 4, 3, stride=2)"))
    else:
        content = json.loads(sidecar.read_text())
        content["recipe"]["input_shape"] = [3, 9, 8]
        sidecar.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "out.safetensors"), "-o", str(tmp_path / "merged.safetensors")]) == 2
    assert "out.safetensors: the solution was made for a network of hash" in capsys.readouterr().err
    assert not (tmp_path / "merged.safetensors").exists()


def test_both_weights_log_and_picture_are_written(command: list[str], tmp_path: Path, capsys: Any) -> None:
    more = ["--epochs", "3", "--save-both", "--feature-weight", "0.5", "--ema", "0.9", "--json"]
    assert main([*command, *more]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader((tmp_path / "out.safetensors.log.csv").read_text().splitlines()))
    assert [int(row["steps"]) for row in rows] == [3, 6, 9]
    assert (tmp_path / "out.safetensors.png").read_bytes().startswith(b"\x89PNG")
    best = result["finetune"]["best_epoch"]
    last, other = (load_form(tmp_path / f"out{kind}.safetensors").module for kind in ("", ".best"))
    images = torch.ones(1, 3, 8, 8)
    assert torch.equal(last(images), other(images)) == (best == 3)
    assert not (tmp_path / "out.safetensors.checkpoint").exists()
    # Nothing of it is lost to a second run.
    assert main([*command, *more]) == 2
    (tmp_path / "out.safetensors").unlink()
    assert main([*command, *more]) == 2
    assert "out.safetensors.log.csv: is there already" in capsys.readouterr().err


def test_checkpoint_of_another_solution_or_version_is_refused(command: list[str], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "out.safetensors.checkpoint"
    torch.save({"schema": 1, "config": {}}, path)
    assert main([*command, "--epochs", "1"]) == 2
    assert "is of another version of layerfold" in capsys.readouterr().err
    path.unlink()
    student = lf.build_train_form(*_traced(command[1]), lf.Solution(act_pos=(1, 2), merge_pos=(1, 2)))
    data = lf.open_data(command[5], input_shape=(3, 8, 8))
    lf.finetune_network(student, data, epochs=1, batch_size=16, checkpoint_path=path, progress=False)
    assert main([*command, "--epochs", "1", "--no-teacher"]) == 2
    assert re.search(r"was made with model=.*another network, solution or weights", capsys.readouterr().err)


def _traced(source: str) -> tuple[torch.nn.Module, lf.Network]:
    module = lf.load_model(source).module
    return module, lf.trace_network(module, torch.zeros(1, 3, 8, 8))


def test_solution_that_merges_nothing_has_no_feature_maps_to_compare(
    command: list[str], tmp_path: Path, capsys: Any
) -> None:
    lf.Solution(act_pos=(1, 2), merge_pos=(1, 2)).write(tmp_path / "solution.json")
    assert main([*command, "--feature-weight", "1"]) == 2
    assert "--feature-weight 1: the solution merges nothing" in capsys.readouterr().err


def test_tensorboard_is_written_or_named_as_missing(command: list[str], tmp_path: Path, capsys: Any) -> None:
    board = tmp_path / "board"
    code = main([*command, "--epochs", "1", "--no-test", "--tensorboard", str(board)])
    if importlib.util.find_spec("tensorboard") is None:
        assert code == 4
        assert "needs the package tensorboard" in capsys.readouterr().err
    else:
        assert code == 0
        assert list(board.glob("events.out.tfevents.*"))


def test_commands_and_flags_of_the_page_are_understood() -> None:
    lines = re.findall(r"^\$ .*?layerfold (finetune .*)$", _PAGE, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        build_parser().parse_args(line.split())
    commands = next(action for action in build_parser()._actions if action.choices).choices
    known = set(commands["finetune"]._option_string_actions)
    launchers = {"--multi_gpu", "--machine_rank", "--cpu"}
    assert set(re.findall(r"`(--[a-z0-9_-]+)", _PAGE)) <= known | launchers
    assert set(re.findall(r"\blf\.(\w+)", _PAGE)) <= set(lf.__all__)


@pytest.mark.parametrize("last_written", [".safetensors", ".safetensors.png", ".best.safetensors"])
def test_run_killed_before_it_removed_its_checkpoint_ends_by_the_same_command(
    last_written: str, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [*command, "--epochs", "2", "--save-both", "--no-test"]
    real = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "out.safetensors.checkpoint":
            raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    assert main(whole) == 130
    monkeypatch.setattr(Path, "unlink", real)
    expected = (tmp_path / "out.safetensors").read_bytes()
    order = ["out.safetensors", "out.safetensors.png", "out.best.safetensors"]
    for later in order[order.index(f"out{last_written}") + 1 :]:
        (tmp_path / later).unlink()
    assert main(whole) == 0
    assert (tmp_path / "out.safetensors").read_bytes() == expected
    assert all((tmp_path / each).exists() for each in order)
    assert not (tmp_path / "out.safetensors.checkpoint").exists()
    assert main(whole) == 2, "and is not started over"


def test_full_disk_at_the_first_checkpoint_needs_no_overwrite(command: list[str], tmp_path: Path, capsys: Any) -> None:
    whole = [*command, "--epochs", "2", "--no-test"]
    with no_file_longer_than(2000):
        assert main(whole) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "make room there" in said
    assert main(whole) == 0
