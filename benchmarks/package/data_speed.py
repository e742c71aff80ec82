"""How fast images come: the loader alone, with and without the cache, and how long a training step waits for it.

    python benchmarks/package/data_speed.py [--steps N]

CIFAR-10 at 32 pixels (held) and the ImageNet samples at 224 (opened as a set too large to be held: random resized
crops). Every row names how its images were kept. The share of waiting is measured on MobileNetV2 at both sizes, with
batches made ahead and, for comparison, with each batch made when it is asked for.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
import torch.nn.functional as F
from record import shared_path, write_record
from torch import nn

import layerfold as lf

CIFAR, IMAGENET = "cifar10", "imagenet_sample"
POLICY = "rand-m9-mstd0.5-inc1"
CASES = {
    # data, split, side, a size in bytes above which a split is not held, network, images per step
    "CIFAR-10, 32 px": (CIFAR, "train", 32, 2**30, "mobilenetv2_050", 128),
    "ImageNet samples, 224 px": (IMAGENET, "holdout", 224, 1, "mobilenetv2_100", 32),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="timed training steps (default: 12)")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = {
                "loader_images_per_s": loader_speeds(name, Path(folder)),
                "training": waiting(name, Path(folder), args.steps),
            }
    settings = {
        "steps": args.steps,
        "policy": POLICY,
        "torch_threads": torch.get_num_threads(),
        "cases": {
            name: dict(zip(("data", "split", "side", "most_bytes_held", "network", "batch_size"), case, strict=True))
            for name, case in CASES.items()
        },
    }
    write_record("data_speed", results, settings, packages=("torch", "timm", "numpy", "pillow", "pyarrow"))
    return 0


def opened(name: str, cache: Path | str) -> lf.ImageData:
    data, _, side, most, *_ = CASES[name]
    return lf.open_data(
        f"parquet:{shared_path() / 'data' / data}", input_shape=(3, side, side), max_array_bytes=most, cache=cache
    )


def loader_speeds(name: str, folder: Path) -> dict[str, float]:
    """Return images per second of whole epochs, augmented by random crops unless the row says otherwise."""
    _, split, _, _, _, batch = CASES[name]

    def epoch(data: lf.ImageData, **options: Any) -> float:
        count = 0
        began = time.perf_counter()
        for images, _ in data.loader(split, batch, shuffle=True, **{"augment": True, **options}):
            count += len(images)
        return count / (time.perf_counter() - began)

    without, filling = opened(name, "off"), opened(name, folder)
    speeds = {
        "no cache, first epoch": epoch(without),
        "no cache, second epoch": epoch(without),
        "cache, first epoch of the first run": epoch(filling),
    }
    again = opened(name, folder)
    speeds |= {
        "cache, first epoch of a later run": epoch(again),
        "cache, second epoch": epoch(again),
        "cache, no augmentation": [epoch(again, augment=False) for _ in range(2)][1],
        f"cache, {POLICY} and erasing, 2,000 images": epoch(again, augment=POLICY, random_erasing=0.25, limit=2000),
    }
    for row, speed in speeds.items():
        print(f"{name}: {row}: {speed:,.0f} images/s", file=sys.stderr)
    return {row: round(speed, 1) for row, speed in speeds.items()}


def waiting(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """Return the share of the time that training steps wait for batches, by how those are made."""
    found = {}
    ways: dict[str, tuple[Path | str, bool | str, bool]] = {
        "cache, made ahead": (folder, True, True),
        "cache, made when asked for": (folder, True, False),
        "no cache, made ahead": ("off", True, True),
        "no cache, made when asked for": ("off", True, False),
        f"cache, {POLICY}": (folder, POLICY, True),
    }
    for way, (cache, augment, is_ahead) in ways.items():
        data = opened(name, cache)
        if CASES[name][0] == CIFAR:
            data.preload("train")
        with nullcontext() if is_ahead else mock.patch("layerfold.data._splits.prepared_ahead", in_turn):
            found[way] = timed_steps(name, data, augment, steps)
        print(f"{name}: {way}: {found[way]}", file=sys.stderr)
    return found


def in_turn(makes: Iterable[Callable[[], Any]]) -> Iterator[Any]:
    """Make each item when it is asked for."""
    return (make() for make in makes)


def timed_steps(name: str, data: lf.ImageData, augment: bool | str, steps: int) -> dict[str, float]:
    _, split, _, _, network, batch = CASES[name]
    torch.manual_seed(0)
    model = make_network(network, data.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = data.loader(split, batch, shuffle=True, augment=augment)
    waited, count = 0.0, 0
    # As many epochs as it takes; two steps of warm-up.
    batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))
    began = time.perf_counter()
    for step in range(steps + 2):
        if step == 2:
            waited, count, began = 0.0, 0, time.perf_counter()
        asked = time.perf_counter()
        images, labels = next(batches)
        waited += time.perf_counter() - asked
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        count += len(images)
    took = time.perf_counter() - began
    return {
        "images_per_s": round(count / took, 1),
        "waiting_pct": round(100 * waited / took, 2),
        "wait_ms_per_step": round(1000 * waited / steps, 2),
        "step_ms": round(1000 * took / steps, 1),
    }


def make_network(name: str, num_classes: int) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=num_classes)
    if name == "mobilenetv2_050":  # the stem for small images
        model.get_submodule("conv_stem").stride = (1, 1)
    return model.train().to(memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
