"""Tiny real inputs of every kind that a command reads, made by the commands themselves."""

from __future__ import annotations

import sys
from pathlib import Path

_OWN = """
import torch
from torch import nn


class Images(torch.utils.data.Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count, shape):
        self.targets, self.shape = [index % 2 for index in range(count)], shape

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        noise = torch.rand(self.shape, generator=torch.Generator().manual_seed(index))
        return noise + self.targets[index], self.targets[index]


def images(input_shape):
    return Images(80, input_shape), Images(16, input_shape)


def net():
    torch.manual_seed(0)
    layers = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""
MODEL = ["own.py:net", "--input", "3x8x8"]
DATA = ["--data", "own.py:images", "--batch-size", "16"]
_FAST = ["--method", "isolated", "--cap-s", "0.01", "--target", "0.5"]

SKELETONS: dict[tuple[str, ...], list[str]] = {
    ("compress",): [
        *MODEL,
        *DATA,
        "--weights",
        "weights.pth",
        "--fastest",  # on a busy machine no budget is sure to be met
        "--no-finetune",
        "--method",
        "recalibrate",
        "--whole-plans",
        "0",
        "--quiet",
        "-o",
        "out",
    ],
    ("demo",): ["--quick", "-o", "out"],
    ("inspect",): [*MODEL, "--svg", "new.svg"],
    ("profile",): [*MODEL, *_FAST, "--quiet", "-o", "new.csv"],
    ("importance",): [*MODEL, *DATA, "--weights", "weights.pth", "--method", "recalibrate", "--quiet", "-o", "new.csv"],
    ("solve",): ["--latency", "latency.csv", "--importance", "importance.csv", "--speedup", "0.9", "-o", "new.json"],
    ("search",): [
        *MODEL,
        *DATA,
        "--weights",
        "weights.pth",
        "--keep",
        "2",
        "--steps",
        "4",
        "--quiet",
        "-o",
        "new.json",
    ],
    ("verify",): [*MODEL, "--solution", "solution.json", "--cap-s", "0.01", "--target", "0.5", "--quiet"],
    ("finetune",): [
        *MODEL,
        *DATA,
        "--weights",
        "weights.pth",
        "--solution",
        "solution.json",
        "--steps",
        "2",
        "--quiet",
        "-o",
        "new.safetensors",
    ],
    ("merge",): ["finetuned.safetensors", "-o", "new.safetensors"],
    ("export",): ["merged.safetensors", "-o", "out"],
    ("run",): ["network.onnx", "--input", "image.png", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"],
    ("bench",): ["network.onnx", "merged.safetensors", "--cap-s", "0.01", "--target", "0.5", "--quiet"],
    ("compare",): [*MODEL, "solution.json", "--cap-s", "0.01", "--target", "0.5", "--quiet", "--csv", "new.csv"],
    ("tables", "check"): ["latency.csv", "importance.csv"],
    ("tables", "merge"): ["latency.csv", "-o", "new.csv"],
    ("tables", "diff"): ["latency.csv", "latency.csv"],
    ("tables", "plot"): ["latency.csv", "-o", "new.png"],
    ("backends",): [],
}
"""A good command line of every command, by its name; in the folder of ``make_inputs``."""


def make_inputs(folder: Path) -> None:
    """Fill a folder with a model, images, tables, a solution, checkpoints and an ONNX file, all small and good."""
    from harness import run_forked

    (folder / "own.py").write_text(_OWN)
    _write_model_and_image(folder)
    steps = [
        ["profile", *MODEL, *_FAST, "-o", "latency.csv", "--quiet"],
        [
            "importance",
            *MODEL,
            *DATA,
            "--weights",
            "weights.pth",
            "--method",
            "recalibrate",
            "--score",
            "loss",
            "-o",
            "importance.csv",
            "--quiet",
        ],
        [
            "finetune",
            *MODEL,
            *DATA,
            "--weights",
            "weights.pth",
            "--solution",
            "solution.json",
            "--steps",
            "4",
            "-o",
            "finetuned.safetensors",
            "--quiet",
        ],
        ["merge", "finetuned.safetensors", "-o", "merged.safetensors", "--onnx", "network.onnx"],
    ]
    (folder / "solution.json").write_text('{"schema": 1, "act_pos": [2, 3], "merge_pos": [2, 3]}\n')
    for arguments in steps:
        done = run_forked(arguments, folder, limit_s=300)
        if done.code != 0:
            sys.exit(f"error: the inputs could not be made: layerfold {' '.join(arguments)}\n{done.err}")


def _write_model_and_image(folder: Path) -> None:
    """Write in a child, so that this process starts no thread of torch's before it forks."""
    import os

    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            import torch
            from PIL import Image

            from layerfold.models import load_model

            torch.save(load_model("own.py:net").module.state_dict(), "weights.pth")
            for split in ("train", "val"):
                for label, shade in (("dark", 40), ("bright", 200)):
                    (folder / "images" / split / label).mkdir(parents=True)
                    for number in range(4):
                        Image.new("RGB", (10, 9), (shade, number, shade)).save(
                            folder / "images" / split / label / f"{number}.png"
                        )
            Image.new("RGB", (10, 9), (40, 90, 200)).save("image.png")
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("error: the model could not be written")
