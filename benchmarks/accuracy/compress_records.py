"""Run ``layerfold compress`` on real networks and images, and record what came out.

    python benchmarks/accuracy/compress_records.py mobilenetv2_050_cifar
    python benchmarks/accuracy/compress_records.py resnet20
    python benchmarks/accuracy/compress_records.py tf_efficientnet_lite0

Each case first makes its baseline (trained here, finetuned here, or converted from a package), then runs the command
in a process of its own, as a user would. Everything is resumable: work is kept under ``--work``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from baselines import cifar_data, finetune_published, run_command, train
from record import ROOT, shared_path, write_record

_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One record.

    Attributes:
        baseline: makes the weights file below the given folder and returns it.
        model: MODEL of the command.
        arguments: the rest of the command, but for weights and output.
    """

    baseline: Callable[[Path], Path]
    model: str
    arguments: tuple[str, ...]


def _convert_lite0(work: Path) -> Path:
    path = work / "efficientnet_lite0.safetensors"
    if not path.exists():
        run_command([sys.executable, str(ROOT / "benchmarks/accuracy/efficientnet_lite0_weights.py"), "-o", str(path)])
    return path


def cases() -> dict[str, Case]:
    """Return every case by name."""
    factory = "benchmarks/lib/cifar_resnet.py"
    images = shared_path() / "data/imagenet_sample"
    return {
        "mobilenetv2_050_cifar": Case(
            baseline=train("mobilenetv2_050_cifar", "--epochs", "4", "--learning-rate", "0.005"),
            model=f"{factory}:mobilenetv2_050_cifar",
            arguments=("--data", cifar_data(), "--speedup", "1.3", "--epochs", "2", "--importance-images", "1000"),
        ),
        "resnet20": Case(
            baseline=finetune_published,
            model=f"{factory}:resnet20",
            arguments=(
                "--data",
                cifar_data(),
                "--fastest",
                "--epochs",
                "1",
                "--importance-images",
                "1000",
                "--learning-rate",
                "0.02",
            ),
        ),
        "tf_efficientnet_lite0": Case(
            baseline=_convert_lite0,
            model="timm:tf_efficientnet_lite0",
            arguments=(
                "--data",
                f"parquet:{os.path.relpath(images, ROOT)}",
                "--speedup",
                "1.15",
                "--no-finetune",
                "--score",
                "agreement",
                "--input",
                "3x224x224",
                "--mean",
                "0.5,0.5,0.5",
                "--std",
                "0.5,0.5,0.5",
                "--crop-pct",
                "0.875",
            ),
        ),
    }


def run_case(name: str, case: Case, work: Path) -> None:
    """Make the baseline, compress it, write the record."""
    weights = case.baseline(work)
    out = work / name
    command = [
        "-m",
        "layerfold",
        "compress",
        case.model,
        "--weights",
        os.path.relpath(weights, ROOT),
        *case.arguments,
        "-o",
        os.path.relpath(out, ROOT),
    ]
    run_command([sys.executable, *command], accepted=(0, 3))
    run = json.loads((out / "run.json").read_text())
    steps = run["steps"]
    results: dict[str, Any] = {
        "baseline": _baseline_facts(weights),
        "scores": steps["evaluate"]["result"],
        "latency": steps["bench"]["result"],
        "predicted_ms": json.loads((out / "solution.json").read_text())["predicted_ms"],
        "verify_rounds": [
            {key: each[key] for key in ("predicted_ms", "measured_ms", "low_ms", "high_ms", "ratio", "is_within")}
            for each in steps["solve and verify"]["result"]["rounds"]
        ],
        "solution": json.loads((out / "solution.json").read_text()),
        "seconds": {step: facts["seconds"] for step, facts in steps.items()},
    }
    settings = {**run["config"], "command": "layerfold " + " ".join(command[2:])}
    write_record(f"compress_{name}", results, settings, packages=_PACKAGES)


def _baseline_facts(weights: Path) -> dict[str, Any]:
    beside = weights.with_suffix(".json")
    found: dict[str, Any] = json.loads(beside.read_text()) if beside.exists() else {"weights": weights.name}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compress a real network and record what came out (resumable).")
    known = cases()
    parser.add_argument("case", choices=sorted(known))
    parser.add_argument("--work", type=Path, default=ROOT / "build/compress_records", metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    run_case(arguments.case, known[arguments.case], arguments.work.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
