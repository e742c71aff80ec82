"""Long commands that are stopped, fail or lack something: the exit code says which, and the next run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from layerfold.cli import main

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
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Return MODEL, input and data of a user's own file, and the solution that merges its two layers."""
    (tmp_path / "own.py").write_text(_FILE)
    (tmp_path / "solution.json").write_text('{"act_pos": [2], "merge_pos": [2]}')
    own = tmp_path / "own.py"
    return [f"{own}:net", "--input", "3x8x8", "--data", f"{own}:images", "--batch-size", "16"]


def _finetune(arguments: list[str], out: Path, *more: str) -> int:
    solution = out.parent / "solution.json"
    return main(["finetune", *arguments, "--solution", str(solution), "--epochs", "3", "-o", str(out), "--json", *more])


def test_interrupted_finetuning_goes_on_and_ends_as_if_it_had_not_been(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, whole = tmp_path / "stopped.safetensors", tmp_path / "whole.safetensors"
    assert _finetune(arguments, whole) == 0
    monkeypatch.setenv("STOP_AT_READ", "200")
    capsys.readouterr()
    assert _finetune(arguments, stopped) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "layerfold: interrupted; run the same command again to go on"
    assert (tmp_path / "stopped.safetensors.checkpoint").exists()
    assert not stopped.exists()
    monkeypatch.delenv("STOP_AT_READ")
    assert _finetune(arguments, stopped) == 0
    assert json.loads(capsys.readouterr().out)["finetune"]["resumed_from_step"] > 0
    assert not (tmp_path / "stopped.safetensors.checkpoint").exists()
    expected, got = load_file(whole), load_file(stopped)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_diverged_finetuning_is_exit_1_and_leaves_no_result(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _finetune(arguments, tmp_path / "out.safetensors", "--learning-rate", "1e30", "--warmup", "0") == 1
    assert "lower learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def _interrupt_once_it_has_lines(running: subprocess.Popen[str], journal: Path, lines: int) -> None:
    while running.poll() is None:
        if journal.exists() and journal.read_text().count("\n") >= lines:
            running.send_signal(signal.SIGINT)
            return
        time.sleep(0.02)


def test_interrupted_importance_goes_on_where_it_stopped(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "imp.csv", tmp_path / "imp.csv.journal"
    left_out = [word for stage in ("blocks.4", "blocks.5", "blocks.6") for word in ("--exclude", stage)]
    command = [
        *("importance", "timm:mobilenetv2_035", "--input", "3x32x32", "--num-classes", "2", *arguments[3:5]),
        *("--max-kernel", "3", *left_out, "-o", str(out), "--json"),
    ]
    # A process of its own: in this one, what is called at a garbage collection may swallow the interrupt. Where these
    # tests run in the background of a shell, SIGINT is ignored, which a child takes over.
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from layerfold.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _interrupt_once_it_has_lines(running, journal, 4)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130, said
    assert said.splitlines()[-1] == "layerfold: interrupted; run the same command again to go on"
    assert not out.exists()
    finished = journal.read_text().count("\n") - 2  # the settings, and what was trained for all entries
    assert finished >= 2
    assert main(command) == 0
    captured = capsys.readouterr()
    assert f"importance: shared: {finished}/" in captured.err
    assert "training shared weights" not in captured.err
    assert json.loads(captured.out)["entries"] > finished
    assert not journal.exists()


def test_missing_package_is_exit_4_and_says_how_to_install_it() -> None:
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\nfrom layerfold.cli import main\n"
        "sys.exit(main(['profile', 'timm:mobilenetv2_035', '--dry-run']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines()[-1].startswith("layerfold: error: backend='onnxruntime' needs the package")
    assert "pip install onnxruntime" in done.stderr


def test_unknown_backend_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "timm:mobilenetv2_035", "--dry-run", "--backend", "onxruntime"]) == 2
    assert "nearest: onnxruntime" in capsys.readouterr().err


def test_labels_outside_the_model_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["timm:mobilenetv2_035", "--input", "1x32x32", "--num-classes", "5"]
    assert main(["importance", *model, "--data", "mnist5k", "-o", str(tmp_path / "imp.csv")]) == 2
    assert "--num-classes 10" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
