"""Baselines on CIFAR-10, trained by ``train_cifar_baseline.py`` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from record import ROOT, shared_path


def cifar_data() -> str:
    """Return DATA of the commands: the images of CIFAR-10, from the repository's root."""
    return f"parquet:{os.path.relpath(shared_path() / 'data/cifar10', ROOT)}"


def train(model: str, *more: str) -> Callable[[Path], Path]:
    """Return what trains a network of ``cifar_resnet.py`` into a folder, and returns its weights file."""

    def make(work: Path) -> Path:
        script = str(ROOT / "benchmarks/accuracy/train_cifar_baseline.py")
        run_command([sys.executable, script, model, "--data", cifar_data(), *more, "-o", str(work)])
        return work / f"{model}.safetensors"

    return make


def finetune_published(work: Path) -> Path:
    """Finetune the published ResNet-20 into a folder, and return its weights file."""
    published = shared_path() / "checkpoints/resnet20-12fca82f.th"
    return train(
        "resnet20", "--weights", str(published), "--epochs", "2", "--optimizer", "sgd", "--learning-rate", "0.01"
    )(work)


def run_command(command: list[str], accepted: tuple[int, ...] = (0,)) -> None:
    """Run a command in the repository's root, and end where it ends with another exit status than those accepted."""
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode not in accepted:
        sys.exit(done.returncode)
