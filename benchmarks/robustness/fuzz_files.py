"""Every file that a command reads, damaged: no traceback, no hang, the right exit code, no other file touched.

    python benchmarks/robustness/fuzz_files.py                    # 200 mutations a file
    python benchmarks/robustness/fuzz_files.py -n 20 --only solution --seed 3 --verbose

Each run damages one good file (mutations.py) and gives it to a command that reads it, in a forked child. Ends 1 where
a run broke a promise; these are printed with what was done to the file.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import Outcome, judge, load_everything, run_forked, snapshot
from inputs import MODEL, SKELETONS, make_inputs
from mutations import mutate
from record import write_record

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
            ["solve", "--time-path", "plans.csv", "--imp-path", "importance.csv", "--speedup", "0.9", "-o", "new.json"],
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=200, help="mutations a file (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", metavar="FOLDER", help="keep the good files there, for the next time")
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--verbose", action="store_true", help="print every run")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    load_everything()
    with tempfile.TemporaryDirectory() as name:
        folder, good = Path(name) / "work", Path(args.inputs or f"{name}/good").absolute()
        os.environ["LAYERFOLD_CACHE"] = str(good.parent / "cache")
        if not good.exists():
            good.mkdir(parents=True)
            make_inputs(good)
            make_more(good)
        shutil.copytree(good, folder, symlinks=True)
        chosen = [target for target in TARGETS if args.only in target.file and (good / target.file).exists()]
        results = {target.file: fuzz(target, folder, good, args) for target in chosen}
    print(f"{'file':32} {'runs':>5} {'bad':>4} {'slowest':>8}  exit codes", file=sys.stderr)
    for file, found in results.items():
        codes = ", ".join(f"{code}: {count}" for code, count in found["codes"].items())
        print(f"{file:32} {found['runs']:5} {len(found['bad']):4} {found['slowest_s']:7.1f}s  {codes}", file=sys.stderr)
    num_bad = sum(len(found["bad"]) for found in results.values())
    if not args.no_record:
        write_record(
            "fuzz_files",
            {"passed": not num_bad, "bad": num_bad, "files": results},
            vars(args),
            packages=("torch", "onnxruntime", "pydantic", "pillow"),
        )
    return int(num_bad > 0)


def fuzz(target: Target, folder: Path, good: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Damage one file again and again; return how the commands ended."""
    rng = random.Random(f"{args.seed} {target.file}")
    codes: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    slowest = 0.0
    pristine = snapshot(good)
    for number in range(args.n):
        command = target.commands[number % len(target.commands)]
        way = mutate(folder / target.file, target.kind, rng)
        before = snapshot(folder)
        outcome = run_forked(command, folder, limit_s=args.limit_s)
        after = snapshot(folder)
        judge(outcome, before, after, may_change=outputs_of(command, target.file))
        codes[str(outcome.code)] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.faults or args.verbose:
            said = (outcome.err.strip().splitlines() or [""])[-1]
            print(
                f"{target.file}, {way}: {', '.join(outcome.faults) or outcome.code}: {said[:300]}\n"
                f"    layerfold {shlex.join(command)}",
                file=sys.stderr,
            )
        if outcome.faults:
            bad.append({"number": number, "way": way, "command": shlex.join(command), **facts_of(outcome)})
        restore(folder, good, pristine)
    print(f"{target.file}: {len(bad)} of {args.n} bad", file=sys.stderr, flush=True)
    return {"runs": args.n, "bad": bad, "codes": dict(codes), "slowest_s": round(slowest, 1)}


def facts_of(outcome: Outcome) -> dict[str, Any]:
    return {"code": outcome.code, "faults": outcome.faults, "err": outcome.err[-2000:]}


def outputs_of(command: list[str], damaged: str) -> list[str]:
    """Return what a command may write: its outputs, and what it sets aside or makes again of the damaged file."""
    found = ["new", "out2", "cache.sqlite"]
    if command[0] == "compress":
        found.append(command[-1])
    return [*found, damaged]


def restore(folder: Path, good: Path, pristine: dict[str, str]) -> None:
    """Make the folder as it was."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if name not in pristine and not (path.is_dir() and not path.is_symlink() and (good / name).is_dir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.is_symlink() or path.exists():
                path.unlink()
    now = snapshot(folder)
    for name, digest in pristine.items():
        if now.get(name) != digest:
            place = folder / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif place.is_symlink() or place.exists():
                place.unlink()
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(good / name, place)


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


if __name__ == "__main__":
    sys.exit(main())
