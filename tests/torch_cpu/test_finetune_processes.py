"""Two real processes train as one does; when one fails, one says why."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import layerfold as lf
from layerfold.data import Share
from layerfold.errors import UsageError
from layerfold.finetune._processes import open_accelerator

_ROOT = Path(__file__).resolve().parents[2]
_RESNET = f"{_ROOT / 'benchmarks/lib/cifar_resnet.py'}:resnet20"


def launch(*arguments: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run Python code or a module in several processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=300, env=environment, check=False
    )


def test_shares_of_a_batch_are_disjoint_pairs_from_both_ends() -> None:
    for size in (8, 9, 32, 33):
        for number in (1, 2, 3, 4):
            shares = [Share(index, number).rows(size) for index in range(number)]
            assert sorted(place for share in shares for place in share) == list(range(size))
            for share in shares:
                assert [size - 1 - place for place in reversed(share)] == share


_TRAINING = """
import json, sys
from layerfold.finetune import ending_together, is_main_process
from tests.torch_cpu.test_finetune_processes import small_run

with ending_together():
    found = small_run(sys.argv[1])
if is_main_process():
    json.dump(found, open(sys.argv[1] + ".json", "w"))
"""


def write_noise(folder: Path) -> None:
    """Write made-up images as PNG files, so that they are decoded and augmented as any others."""
    for row in range(20):
        pixels = np.random.default_rng(row).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        for part in ("train", "val", "test"):
            target = folder / part / f"class-{row % 10}"
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target / f"{row}.png")


def small_run(name: str) -> dict[str, list[float]]:
    """Train ResNet-20 four steps, every epoch one step; return what it gave."""
    torch.manual_seed(0)
    data = lf.open_data(f"folder:{Path(name).parent / 'noise'}", input_shape=(3, 32, 32), num_classes=10, cache="off")
    model, teacher = lf.load_model(_RESNET).module, lf.load_model(_RESNET).module
    report = lf.finetune_network(
        model,
        data,
        teacher=teacher,
        epochs=4,
        batch_size=16,
        learning_rate=0.0005,
        mixup=0.3,
        cutmix=1.0,
        ema_decay=0.9,
        label_smoothing=0.1,
        checkpoint_path=f"{name}.checkpoint",
        log_path=f"{name}.csv",
        progress=False,
    )
    return {
        "losses": [row.train_loss for row in report.history],
        "holdout": [row.holdout_loss or 0.0 for row in report.history],
        "mean": model.get_buffer("bn1.running_mean").tolist(),
    }


def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    write_noise(tmp_path / "noise")
    one = small_run(str(tmp_path / "one"))
    script = tmp_path / "training.py"
    script.write_text(_TRAINING)
    done = launch(str(script), str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    for name, values in one.items():
        assert values == pytest.approx(two[name], abs=1e-4), name
    assert len((tmp_path / "two.csv").read_text().splitlines()) == 5
    assert torch.load(tmp_path / "two.checkpoint", weights_only=True)["state"]["step"] == 4


_FACTORY = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from layerfold.data import ImageData

def network(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))

class LastIsBroken(TensorDataset):
    # The last row of the first process's share: the other process never sees it.
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, 7 if label == 2 else label

def data(**_):
    labels = torch.tensor([0, 1] * 15 + [0, 2])
    good = TensorDataset(torch.randn(32, 3, 8, 8), labels.clamp(max=1))
    return ImageData(name="made up", num_classes=3, input_shape=(3, 8, 8),
                     train=LastIsBroken(torch.randn(32, 3, 8, 8), labels), holdout=good, test=good)
"""


def test_error_that_one_process_meets_ends_both_with_one_line(tmp_path: Path) -> None:
    factory = tmp_path / "factory.py"
    factory.write_text(_FACTORY)
    lf.Solution(act_pos=(2,), merge_pos=(2,)).write(tmp_path / "solution.json")
    done = launch(
        "-m",
        "layerfold",
        "finetune",
        f"{factory}:network",
        "--input",
        "3x8x8",
        "--data",
        f"{factory}:data",
        "--solution",
        str(tmp_path / "solution.json"),
        "--batch-size",
        "32",
        "--epochs",
        "2",
        "-o",
        str(tmp_path / "out.safetensors"),
        "--no-test",
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("layerfold: ")]
    assert len([line for line in lines if "error" in line]) == 1, done.stderr
    assert "label 7 is outside 0..2" in done.stderr
    assert done.stderr.count("random weights") <= 1
    assert not (tmp_path / "out.safetensors").exists()


def test_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        words = rf"^MASTER_PORT={port}: the port is in use .*--main_process_port"
        with pytest.raises(UsageError, match=words) as caught:
            open_accelerator("cpu", "no", changes=False)
    assert "\n" not in str(caught.value)


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="device='cuda:1': several processes take a device each"):
        open_accelerator("cuda:1", "no", changes=False)
