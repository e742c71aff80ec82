"""Does the loss of a whole plan's network, before any training, tell how good it will be after finetuning?

    python benchmarks/whole_plans.py

For every plan of ResNet-20 and MobileNetV2-0.5 on CIFAR-10 that ``importance_rank.py`` and ``accuracy_cifar10.py`` have
finetuned (and two of a search that was taken back, ``results/whole_plans``): the loss on 1,000 holdout images with
BatchNorm statistics measured anew on 256 training images, beside the test accuracy after finetuning, and the rank
correlation of both among plans that were finetuned alike. Some seconds a plan.
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
from scipy.stats import spearmanr
from shorten_cifar10 import Run

import layerfold as lf
from layerfold.finetune import evaluate_network, recalibrate_batch_norm

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy")
_CALIBRATION, _HOLDOUT = 256, 1000


def finetuned(name: str) -> Iterator[dict[str, Any]]:
    """Yield plans that were finetuned: where from, after how many epochs, the solution, the accuracy."""
    record = json.loads((RESULTS / "importance_rank.json").read_text())
    for row in record["results"].get(name, {}).get("plans", ()):
        for method, found in row.items():
            if not isinstance(found, dict) or "solution" not in found:
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


def untrained_loss(run: Run, solution: lf.Solution) -> float:
    """Return the loss of a plan's network on the holdout, with BatchNorm statistics measured anew."""
    form = lf.build_train_form(run.teacher, run.net, solution).eval()
    recalibrate_batch_norm(form, [images for images, _ in run.data.loader("train", 128, limit=_CALIBRATION)])
    return evaluate_network(form, run.data.loader("holdout", 250, limit=_HOLDOUT)).loss


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / "build/shorten_cifar10", metavar="FOLDER")
    # Of shorten_cifar10.py.
    parser.set_defaults(steps=300, epochs=2, search_epochs=1, backend="onnxruntime", device=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in ("resnet20", "mobilenetv2_050_cifar"):
        run, rows = Run(name, arguments), []
        seen = set()
        for plan in finetuned(name):
            solution = lf.Solution.from_json(plan.pop("solution"))
            if (plan["epochs"], solution.act_pos, solution.plan) in seen:
                continue  # two ways chose it
            seen.add((plan["epochs"], solution.act_pos, solution.plan))
            rows.append({**plan, "untrained_loss": round(untrained_loss(run, solution), 4)})
            print(name, rows[-1], file=sys.stderr, flush=True)
        ranks = {}
        for epochs in sorted({row["epochs"] for row in rows}):
            alike = [row for row in rows if row["epochs"] == epochs]
            found = spearmanr([-row["untrained_loss"] for row in alike], [row["accuracy_pct"] for row in alike])
            ranks[f"{epochs} epochs"] = {"plans": len(alike), "rank": float(found.statistic)}
        results[name] = {"ranks": ranks, "plans": rows}
    write_record("whole_plans", results, {"calibration": _CALIBRATION, "holdout": _HOLDOUT}, packages=_PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
