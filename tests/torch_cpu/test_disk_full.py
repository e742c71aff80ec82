"""A disk that is full in the middle of a file: the old one stays to the byte, the error is one line, nothing is left.

The kernel's own limit on the size of files stands in for the disk: the writes fail for real.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.errors import WriteError
from layerfold.files import replacing, replacing_all, write_bytes, write_json, write_text
from layerfold.finetune._log import EpochLog
from layerfold.finetune._report import EpochRow
from layerfold.importance.sharing import WeightsFile
from layerfold.merge.files import Recipe, save_form
from layerfold.pipeline.run_folder import RunFolder
from layerfold.report import latency_plots
from layerfold.tables import LatencyEntry

OLD = b"the old file"
TABLE = lf.LatencyTable([LatencyEntry(start=m, end=m + 1, latency_ms=1.0, signature="x" * 300) for m in range(400)])
ROW = EpochRow(
    epoch=1, steps=1, train_loss=0.5, holdout_accuracy_pct=None, holdout_loss=None, learning_rate=0.1, seconds=1.0
)
SOLUTION = lf.Solution(act_pos=range(1, 400), merge_pos=range(1, 400))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3))


def save(path: Path) -> None:
    found = model().eval()
    net = lf.trace_network(found, torch.zeros(1, 3, 16, 16))
    solution = lf.Solution(act_pos=(1,), merge_pos=(1, 2))
    recipe = Recipe(model="", input_shape=(3, 16, 16), solution=solution)
    save_form(lf.build_train_form(found, net, solution), path, kind="train", recipe=recipe)


def raw(path: Path) -> None:
    with replacing(path) as partial:
        partial.write_bytes(bytes(50_000))


WRITERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "bytes": ("a.bin", lambda path: write_bytes(path, bytes(50_000))),
    "text": ("a.txt", lambda path: write_text(path, "x" * 50_000)),
    "JSON": ("a.json", lambda path: write_json(path, ["x"] * 50_000)),
    "any writer": ("a.bin", raw),
    "table": ("a.csv", TABLE.write),
    "solution": ("a.json", SOLUTION.write),
    "published solution": ("a.pth", SOLUTION.write_checkpoint),
    "picture": ("a.png", lambda path: latency_plots.latency_heatmap_png(TABLE, path)),
    "drawing": ("a.svg", lambda path: latency_plots.latency_heatmap_png(TABLE, path)),
    "form": ("a.safetensors", save),
    "shared weights": ("a.bin", lambda path: WeightsFile(path).write({"w": torch.zeros(20_000)})),
    "log": ("a.csv", lambda path: EpochLog(path, None).write([ROW] * 900)),
    "ONNX": (
        "a.onnx",
        lambda path: lf.export_network(model(), path.parent, name="a", example_input=torch.zeros(1, 3, 16, 16)),
    ),
    "manifest": ("run.json", lambda path: RunFolder(path.parent, {"a": "x" * 50_000}, overwrite=True)),
}


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("kind", "size"), [*((kind, 1000) for kind in WRITERS), ("bytes", 0), ("table", 0)])
def test_full_disk_leaves_the_old_file(kind: str, size: int, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    old = json.dumps({"schema": 1, "config": {}, "steps": {}}).encode() if kind == "manifest" else OLD
    (tmp_path / name).write_bytes(old)
    sidecar = tmp_path / f"{name}.json"
    sidecar.write_bytes(OLD)
    rule = r"cannot be written \(.*what was there before is untouched"
    with room_for(size), pytest.raises(WriteError, match=rule) as error:
        write(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(tmp_path / name) in str(error.value)
    assert (tmp_path / name).read_bytes() == old
    assert sidecar.read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, sidecar.name})
    write(tmp_path / name)
    assert (tmp_path / name).read_bytes() != old


def test_of_two_files_that_belong_together_neither_is_replaced_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(OLD)
    second.write_bytes(OLD)

    def write() -> None:
        with replacing_all(first, second) as (one, two):
            one.write_bytes(b"new")
            two.write_bytes(bytes(5000))

    with room_for(1000), pytest.raises(WriteError, match=rf"{first} and {second}: cannot be written"):
        write()
    assert first.read_bytes() == second.read_bytes() == OLD
    assert len(list(tmp_path.iterdir())) == 2
