"""The files that commands read, command lines that read each, and good ones of those that inputs.py does not make."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import run_forked
from inputs import MODEL, SKELETONS

_QUICK = ["--cap-s", "0.01", "--target", "0.5", "--quiet"]
_SOLVE = SKELETONS["solve",]
_FINETUNE = SKELETONS["finetune",]
_MERGE = SKELETONS["merge",]
_COMPRESS = SKELETONS["compress",]
_PROFILE = [*SKELETONS["profile",], "--cache", "cache.sqlite"]
_IMPORTANCE = SKELETONS["importance",]


@dataclass(frozen=True)
class Target:
    """A file, what it holds, and command lines that read it."""

    file: str
    kind: str
    commands: list[list[str]]


TARGETS = [
    Target(
        "latency.csv",
        "csv",
        [
            ["solve", *_SOLVE],
            ["tables", "check", "latency.csv"],
            ["tables", "plot", "latency.csv", "-o", "new.png"],
            ["tables", "merge", "latency.csv", "-o", "new.csv"],
            ["importance", *_IMPORTANCE, "--latency", "latency.csv"],
            ["tables", "diff", "latency.csv", "latency.csv"],
        ],
    ),
    Target(
        "latency.csv.json",
        "json",
        [
            ["solve", *_SOLVE],
            ["tables", "check", "latency.csv"],
            ["tables", "plot", "latency.csv", "--kind", "prediction", "-o", "new.png"],
            ["compare", *MODEL, "solution.json", *_QUICK, "--latency", "latency.csv"],
        ],
    ),
    Target(
        "plans.csv.json",
        "json",
        [
            ["tables", "plot", "plans.csv", "--kind", "prediction", "-o", "new.png"],
            ["solve", "--latency", "plans.csv", "--importance", "importance.csv", "--speedup", "0.9", "-o", "new.json"],
        ],
    ),
    Target("importance.csv", "csv", [["solve", *_SOLVE], ["tables", "check", "importance.csv"]]),
    Target("importance.csv.json", "json", [["solve", *_SOLVE], ["tables", "check", "importance.csv"]]),
    Target(
        "solution.json",
        "json",
        [
            ["inspect", *MODEL, "--solution", "solution.json"],
            ["finetune", *_FINETUNE],
            ["verify", *MODEL, "--solution", "solution.json", *_QUICK],
            ["tables", "plot", "latency.csv", "--kind", "time", "--solution", "solution.json", "-o", "new.png"],
        ],
    ),
    Target("checkpoint.pth", "bytes", [["inspect", *MODEL, "--solution", "checkpoint.pth"]]),
    Target(
        "weights.pth",
        "bytes",
        [
            [
                "merge",
                "--model",
                MODEL[0],
                *MODEL[1:],
                "--weights",
                "weights.pth",
                "--solution",
                "solution.json",
                "-o",
                "new.safetensors",
            ]
        ],
    ),
    Target(
        "weights.safetensors",
        "bytes",
        [
            [
                "merge",
                "--model",
                MODEL[0],
                *MODEL[1:],
                "--weights",
                "weights.safetensors",
                "--solution",
                "solution.json",
                "-o",
                "new.safetensors",
            ]
        ],
    ),
    Target("finetuned.safetensors", "bytes", [["merge", *_MERGE]]),
    Target("finetuned.safetensors.json", "json", [["merge", *_MERGE]]),
    Target(
        "merged.safetensors.json",
        "json",
        [["bench", "merged.safetensors", *_QUICK], ["export", "merged.safetensors", "-o", "out2"]],
    ),
    Target(
        "network.onnx",
        "bytes",
        [
            ["bench", "network.onnx", *_QUICK],
            ["run", "network.onnx", "--input", "image.png", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"],
        ],
    ),
    Target("network.onnx.json", "json", [["run", "network.onnx", "--input", "image.png"]]),
    Target("labels.txt", "text", [["run", "network.onnx", "--input", "image.png", "--labels", "labels.txt"]]),
    Target("image.png", "bytes", [["run", "network.onnx", "--input", "image.png"]]),
    Target(
        "images/train/dark/1.png",
        "bytes",
        [
            [
                "importance",
                *MODEL,
                "--data",
                "folder:images",
                "--weights",
                "weights.pth",
                "--method",
                "recalibrate",
                "--batch-size",
                "2",
                "--quiet",
                "-o",
                "new.csv",
            ]
        ],
    ),
    Target(
        "images.parquet",
        "bytes",
        [
            [
                "importance",
                *MODEL,
                "--data",
                "parquet:images.parquet",
                "--weights",
                "weights.pth",
                "--method",
                "recalibrate",
                "--batch-size",
                "2",
                "--quiet",
                "-o",
                "new.csv",
            ]
        ],
    ),
    Target(
        "shards/_info.json",
        "json",
        [
            [
                "importance",
                *MODEL,
                "--data",
                "wds/shards",
                "--weights",
                "weights.pth",
                "--method",
                "recalibrate",
                "--batch-size",
                "2",
                "--quiet",
                "-o",
                "new.csv",
            ]
        ],
    ),
    Target(
        "shards/train-0.tar",
        "bytes",
        [
            [
                "importance",
                *MODEL,
                "--data",
                "wds/shards",
                "--weights",
                "weights.pth",
                "--method",
                "recalibrate",
                "--batch-size",
                "2",
                "--quiet",
                "-o",
                "new.csv",
            ]
        ],
    ),
    Target("cache.sqlite", "sqlite", [["profile", *_PROFILE], ["profile", *_PROFILE, "--dry-run"]]),
    Target("new.csv.journal", "text", [["importance", *_IMPORTANCE]]),
    Target("new.safetensors.checkpoint", "bytes", [["finetune", *_FINETUNE]]),
    *(
        Target(f"out/{name}", kind, [["compress", *_COMPRESS]])
        for name, kind in (
            ("run.json", "json"),
            ("latency.csv", "csv"),
            ("latency.csv.json", "json"),
            ("importance.csv", "csv"),
            ("importance.csv.json", "json"),
            ("solution.json", "json"),
            ("verification.json", "json"),
            ("network.json", "json"),
            ("frontier.csv", "csv"),
            ("merged.safetensors", "bytes"),
            ("merged.safetensors.json", "json"),
            ("original.onnx", "bytes"),
            ("model.onnx", "bytes"),
            ("model.onnx.json", "json"),
            ("scores.json", "json"),
            ("bench.json", "json"),
            ("frontier.png", "bytes"),
            ("network.svg", "bytes"),
            ("report.html", "bytes"),
        )
    ),
    Target("old/run.json", "json", [["compress", *_COMPRESS[:-1], "old"]]),
]


def make_more(folder: Path) -> None:
    """Add what `make_inputs` does not: a run folder, a cache, files of interrupted runs, stored images."""
    steps = [
        ["compress", *_COMPRESS],
        ["profile", *_PROFILE],
        ["profile", *MODEL, "--cap-s", "0.01", "--target", "0.5", "--quiet", "-o", "plans.csv"],
        ["solve", *_SOLVE[:-1], "checkpoint.json", "--pth", "checkpoint.pth"],
    ]
    for arguments in steps:
        done = run_forked(arguments, folder, limit_s=600)
        if done.code != 0:
            sys.exit(f"error: the inputs could not be made: layerfold {shlex.join(arguments)}\n{done.err}")
    for name in ("new.csv", "new.csv.json", "checkpoint.json"):
        (folder / name).unlink(missing_ok=True)
    in_child(lambda: _write_stored_images(folder))
    interrupt(["importance", *_IMPORTANCE], folder, folder / "new.csv.journal", least_lines=2)
    interrupt(["finetune", *_FINETUNE, "--checkpoint-every", "0"], folder, folder / "new.safetensors.checkpoint")
    shutil.copytree(folder / "out", folder / "old")
    in_child(lambda: _as_old(folder / "old/run.json"))


def _write_stored_images(folder: Path) -> None:
    import io
    import json
    import tarfile

    import pyarrow as pa
    import pyarrow.parquet
    from safetensors.torch import save_file

    from layerfold.models import load_model

    os.chdir(folder)
    images, labels = [], []
    for label, name in enumerate(("dark", "bright")):
        for path in sorted((folder / "images/train" / name).iterdir()):
            images.append({"bytes": path.read_bytes(), "path": path.name})
            labels.append(label)
    pyarrow.parquet.write_table(pa.table({"image": images * 4, "label": labels * 4}), "images.parquet")
    (folder / "shards").mkdir()
    for split in ("train", "val"):
        with tarfile.open(folder / f"shards/{split}-0.tar", "w") as archive:
            for number, (image, label) in enumerate(zip(images * 4, labels * 4, strict=True)):
                for suffix, content in (("png", image["bytes"]), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number:04}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    names = {"train": ["train-0.tar"], "validation": ["val-0.tar"]}
    info = {"splits": {split: {"filenames": files, "num_samples": 32} for split, files in names.items()}}
    (folder / "shards/_info.json").write_text(json.dumps(info))
    facts = {
        "preprocessing": {
            "input_shape": [3, 8, 8],
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "is_resized": True,
        }
    }
    (folder / "network.onnx.json").write_text(json.dumps(facts))
    (folder / "labels.txt").write_text("dark\nbright\n")
    save_file(
        {name: value.contiguous() for name, value in load_model("own.py:net").module.state_dict().items()},
        folder / "weights.safetensors",
    )


def _as_old(path: Path) -> None:
    """Make a run file as versions wrote it that kept no hashes."""
    import json

    manifest = json.loads(path.read_text())
    for step in manifest["steps"].values():
        for name in ("files", "reads", "check"):
            step.pop(name, None)
    path.write_text(json.dumps(manifest))


def in_child(work: Any) -> None:
    """Do the work in a child, so that this process starts no thread before it forks."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("error: the inputs could not be made")


def interrupt(arguments: list[str], folder: Path, wanted: Path, *, least_lines: int = 0) -> None:
    """Kill a command as soon as a file is there by which it goes on; a target without its file is left out."""
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:
                os.chdir(folder)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                from layerfold.cli import main as layerfold

                layerfold(arguments)
            finally:
                os._exit(0)
        until = time.monotonic() + 120
        while time.monotonic() < until and os.waitpid(child, os.WNOHANG)[0] == 0:
            if wanted.exists() and wanted.read_bytes().count(b"\n") >= least_lines:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.001)
        if wanted.exists():
            for lock in folder.glob(".*.lock"):
                lock.unlink()
            return
        for path in folder.glob("new*"):
            path.unlink()
    print(f"note: no {wanted.name} was caught; it is left out", file=sys.stderr)
