"""Does the loss of a whole plan's network, before any training or after a short one, tell how good it will be?

    python benchmarks/accuracy/whole_plans.py

For every plan of ResNet-20 and MobileNetV2-0.5 on CIFAR-10 that ``importance_rank.py`` and ``accuracy_cifar10.py`` have
finetuned (and those of ways that were left, ``results/whole_plans``): the loss on 1,000 holdout images, before any
training with BatchNorm statistics measured again on 256 training images, and after 60 steps of 128 images, beside the
test accuracy after finetuning; and the rank correlations of both losses with that among plans that were finetuned
alike. Half a minute per plan; those that are done are kept under ``--work``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
from cifar_runs import NETWORKS, Run
from record import RESULTS, ROOT, write_record
from scipy.stats import spearmanr

import layerfold as lf
from layerfold.finetune import evaluate_network, recalibrate_batch_norm
from layerfold.importance import FinalistScores

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy")
_CALIBRATION, _HOLDOUT = 256, 1000
_LOSSES = ("untrained_loss", "loss_after_60_steps")


def finetuned(name: str) -> Iterator[dict[str, Any]]:
    """Yield plans that were finetuned: where from, after how many epochs, the solution, the accuracy."""
    record = json.loads((RESULTS / "importance_rank.json").read_text())
    for row in record["results"].get(name, {}).get("plans", ()):
        for method, found in row.items():
            if not isinstance(found, dict) or "solution" not in found:
                continue
            yield {
                "from": f"importance_rank, {method}, {row['speedup']:g}x",
                "epochs": record["settings"]["plan_epochs"],
                "solution": found["solution"],
                "accuracy_pct": statistics.mean(found["accuracy_pct"]),
            }
    for folder in (RESULTS / f"accuracy_cifar10/{name}/onnxruntime-3-epochs", RESULTS / "whole_plans" / name):
        for path in sorted(folder.glob("*-0.json")):
            choice = json.loads(path.with_name(f"{path.stem.removesuffix('-0')}.json").read_text())
            if "solution" in choice:  # pruning has none
                yield {
                    "from": f"{folder.parts[-2].replace('whole_plans', 'left')}, {path.stem}",
                    "epochs": 3,
                    "solution": choice["solution"],
                    "accuracy_pct": json.loads(path.read_text())["accuracy_pct"],
                }


def losses(run: Run, solution: lf.Solution) -> dict[str, float]:
    """Return a plan's two losses, each found once."""
    path = run.folder / "whole-plans.json"
    kept: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    structure = json.dumps([solution.act_pos, solution.plan])
    if structure not in kept:
        training = lf.FinetuneOptions(learning_rate=NETWORKS[run.name][1])
        score = FinalistScores(run.teacher, run.net, run.data, training, holdout_images=_HOLDOUT)
        kept[structure] = [round(untrained_loss(run, solution), 4), round(-score(solution), 4)]
        path.write_text(json.dumps(kept))
    return dict(zip(_LOSSES, kept[structure], strict=True))


def untrained_loss(run: Run, solution: lf.Solution) -> float:
    """Return the loss of a plan's network on the holdout, with BatchNorm statistics measured again."""
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
            rows.append({**plan, **losses(run, solution)})
            print(name, rows[-1], file=sys.stderr, flush=True)
        ranks = {}
        for epochs in sorted({row["epochs"] for row in rows}):
            alike = [row for row in rows if row["epochs"] == epochs]
            accuracies = [row["accuracy_pct"] for row in alike]
            ranks[f"{epochs} epochs"] = {"plans": len(alike)} | {
                loss: float(spearmanr([-row[loss] for row in alike], accuracies).statistic) for loss in _LOSSES
            }
        results[name] = {"ranks": ranks, "plans": rows}
    write_record("whole_plans", results, {"calibration": _CALIBRATION, "holdout": _HOLDOUT}, packages=_PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
