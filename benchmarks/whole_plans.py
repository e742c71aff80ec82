"""Does the loss of a whole plan's network, before any training, tell how good it will be after finetuning?

    python benchmarks/whole_plans.py

For every plan of ResNet-20 and MobileNetV2-0.5 on CIFAR-10 that ``importance_rank.py`` and ``accuracy_cifar10.py`` have
finetuned (and two of a search that was taken back, ``results/whole_plans``): by how much its loss differs from the
original's on 1,000 holdout images, with BatchNorm statistics measured anew on 256 training images, once with the
baseline's weights and once with those that ``shared`` trained for the importances (kept under ``--work`` by
``accuracy_cifar10.py --only tables``). Beside it the test accuracy after finetuning, and the rank correlation of both
among plans that were finetuned alike. Some seconds a plan.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, ROOT, write_record
from safetensors.torch import load_file
from scipy.stats import spearmanr
from shorten_cifar10 import Run

import layerfold as lf
from layerfold.importance import WholeScores

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy")
_CALIBRATION, _HOLDOUT = 256, 1000


def finetuned(name: str) -> Iterator[dict[str, Any]]:
    """Yield plans that were finetuned: where from, after how many epochs, the solution, the accuracy."""
    record = json.loads((RESULTS / "importance_rank.json").read_text())
    for row in record["results"].get(name, {}).get("plans", ()):
        for method, found in row.items():
            if not isinstance(found, dict):
                continue
            yield {"from": f"importance_rank, {method}, {row['speedup']:g}x",
                   "epochs": record["settings"]["plan_epochs"],
                   "solution": found["solution"], "accuracy_pct": statistics.mean(found["accuracy_pct"])}
    for folder in (RESULTS / f"accuracy_cifar10/{name}/onnxruntime-3-epochs", RESULTS / "whole_plans" / name):
        for path in sorted(folder.glob("*-0.json")):
            choice = json.loads(path.with_name(f"{path.stem.removesuffix('-0')}.json").read_text())
            if "solution" in choice:  # pruning has none
                yield {"from": f"{folder.parts[-2].replace('whole_plans', 'search')}, {path.stem}", "epochs": 3,
                       "solution": choice["solution"], "accuracy_pct": json.loads(path.read_text())["accuracy_pct"]}


def scores_of(run: Run) -> dict[str, WholeScores]:
    """Return what scores a network's plans, by whose weights."""
    how: dict[str, Any] = {"calibration_images": _CALIBRATION, "holdout_images": _HOLDOUT}
    trained = load_file(run.folder / "accuracy/importance-shared.safetensors")
    return {name: WholeScores(run.loaded.module, run.net, run.data, weights=weights, **how)
            for name, weights in (("baseline", None), ("shared", trained))}


def _rank(rows: list[dict[str, Any]], whose: str) -> float:
    found = spearmanr([row["whole"][whose] for row in rows], [row["accuracy_pct"] for row in rows])
    return round(float(found.statistic), 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build/shorten_cifar10", metavar="FOLDER")
    # Of shorten_cifar10.py.
    parser.set_defaults(steps=300, epochs=2, search_epochs=1, backend="onnxruntime", device=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in ("resnet20", "mobilenetv2_050_cifar"):
        run = Run(name, arguments)
        scores, rows = scores_of(run), []
        seen = set()
        for plan in finetuned(name):
            solution = lf.Solution.from_json(plan.pop("solution"))
            if (plan["epochs"], solution.act_pos, solution.plan) in seen:
                continue  # two ways chose it
            seen.add((plan["epochs"], solution.act_pos, solution.plan))
            rows.append({**plan, "whole": {whose: round(score(solution), 4) for whose, score in scores.items()}})
            print(name, rows[-1], file=sys.stderr, flush=True)
        ranks = {}
        for epochs in sorted({row["epochs"] for row in rows}):
            alike = [row for row in rows if row["epochs"] == epochs]
            ranks[f"{epochs} epochs"] = {"plans": len(alike)} | {whose: _rank(alike, whose) for whose in scores}
        results[name] = {"ranks": ranks, "plans": rows}
    write_record("whole_plans", results, {"calibration": _CALIBRATION, "holdout": _HOLDOUT}, packages=_PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
