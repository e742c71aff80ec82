"""Networks on CIFAR-10: baseline, images, tables, and where what is chosen and trained of them is kept."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from baselines import finetune_published, train
from record import ROOT, shared_path
from torch import nn

import layerfold as lf
from layerfold.profiler import get_backend

_FACTORIES = ROOT / "benchmarks/lib/cifar_resnet.py"
WEIGHTS = ROOT / "benchmarks/weights"
"""Baselines that were trained already, each with a JSON file that says how."""

MAX_KERNEL, MAX_GROWTH = 7, 4.0
"""Limits of the options: images are of 32x32 pixels, and most layers see 8x8 or 4x4."""

IMPORTANCE_IMAGES = 500


def _finetune_published_56(work: Path) -> Path:
    published = shared_path() / "checkpoints/resnet56-4bfd9763.th"
    return train(
        "resnet56", "--weights", str(published), "--epochs", "2", "--optimizer", "sgd", "--learning-rate", "0.01"
    )(work)


NETWORKS: dict[str, tuple[Callable[[Path], Path], float | None]] = {
    "mobilenetv2_050_cifar": (
        train("mobilenetv2_050_cifar", "--epochs", "4", "--learning-rate", "0.005"),
        None,
    ),
    "resnet20": (finetune_published, 0.02),
    "resnet56": (_finetune_published_56, 0.02),
}
"""By factory of ``cifar_resnet.py``: what makes the baseline, and the learning rate (None: the optimizer's own)."""


class Run:
    """One network: its tables and everything that is kept of it, made when first asked for."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.arguments = name, arguments
        self.folder: Path = arguments.work.resolve() / name
        length = f"drops-{arguments.epochs}-epochs-{arguments.search_epochs}-of-search"
        self.trained = self.folder / (length if arguments.steps is None else f"{arguments.steps}-steps")
        self.trained.mkdir(parents=True, exist_ok=True)

    @cached_property
    def baseline(self) -> Path:
        released = WEIGHTS / f"{self.name}.safetensors"
        return released if released.exists() else NETWORKS[self.name][0](self.arguments.work.resolve())

    @cached_property
    def untrained(self) -> lf.LoadedModel:
        """The network with random weights: latency does not depend on them."""
        return lf.load_model(f"{_FACTORIES}:{self.name}")

    @cached_property
    def loaded(self) -> lf.LoadedModel:
        return lf.load_model(f"{_FACTORIES}:{self.name}", weights=self.baseline)

    @cached_property
    def teacher(self) -> nn.Module:
        """The baseline as it is trained with: channels last is a quarter faster on a CPU, and changes no weight."""
        return copy.deepcopy(self.loaded.module).to(memory_format=torch.channels_last)

    @cached_property
    def net(self) -> lf.Network:
        return lf.trace_network(self.untrained.module, torch.zeros(1, *self.untrained.input_shape))

    @cached_property
    def data(self) -> lf.ImageData:
        of = self.untrained
        return lf.open_data(
            f"parquet:{shared_path() / 'data/cifar10'}",
            input_shape=of.input_shape,
            mean=of.mean,
            std=of.std,
            interpolation=of.interpolation,
            crop_pct=of.crop_pct,
            num_classes=of.num_classes,
        )

    @cached_property
    def backend(self) -> Any:
        return get_backend(self.arguments.backend, device=self.arguments.device, threads=1)

    @cached_property
    def candidates(self) -> list[lf.Segment]:
        """Every segment that may be merged, with its ways to drop layers."""
        norms = lf.layer_norms(self.loaded.module, self.net)
        return self.net.candidates(max_kernel=MAX_KERNEL, max_growth=MAX_GROWTH, layer_norms=norms)

    @cached_property
    def latency(self) -> lf.LatencyTable:
        path = self.folder / "latency-with-drops.csv"
        if not path.exists():
            lf.profile_network(
                self.untrained.module,
                self.net,
                self.backend,
                cache=self.folder / "cache.sqlite",
                model_name=self.name,
                candidates=self.candidates,
            ).write(path)
        return lf.LatencyTable.read(path)

    @cached_property
    def importance(self) -> lf.ImportanceTable:
        path = self.folder / "importance-with-drops.csv"
        if not path.exists():
            lf.estimate_importance(
                self.loaded.module,
                self.net,
                self.data,
                latency=self.latency,
                holdout_images=IMPORTANCE_IMAGES,
                journal_path=self.folder / "importance-with-drops.journal",
                model_name=self.name,
            ).write(path)
        return lf.ImportanceTable.read(path)

    def training(self, seed: int, epochs: int) -> lf.FinetuneOptions:
        return lf.FinetuneOptions(
            epochs=epochs, steps=self.arguments.steps, learning_rate=NETWORKS[self.name][1], seed=seed
        )

    def file(self, way: str, speedup: float, seed: int, suffix: str) -> Path:
        return self.trained / f"{way.replace(' ', '-')}-{speedup:g}-{seed}{suffix}"
