"""Accuracy at equal measured speed-up on CIFAR-10: layerfold against four rivals.

    python benchmarks/accuracy/accuracy_cifar10.py                     # both networks, three speed-ups, 3 epochs; hours
    python benchmarks/accuracy/accuracy_cifar10.py resnet20 --only choose   # what each way chooses, measured
    python benchmarks/accuracy/accuracy_cifar10.py resnet56 --epochs 30 --batch-size 512 --learning-rate 0.05 \\
        --mixed-precision bf16 --backend torch --device cuda --train-device cuda

Ways: ``layerfold`` (merging and dropping, the exact solver), ``compress`` (its whole loop: plans near the solver's
scored as wholes, and finalists finetuned for a short while), ``paper`` (Kim et al. 2023: merging only, every importance
by finetuning, time discretised), ``uniform`` (blocks evenly spread), ``pruning`` and ``global pruning`` (filters, by
Torch-Pruning, with ``round_to`` 8, 16 and none, for each network and speed-up the one of these that keeps most), and
the published checkpoints of Dynamic Structure Pruning. What a way chooses is measured in turns with the original, and
it chooses again with less until it is within the budget (``--by-table``: neither); then every network is finetuned
alike, from the same baseline with the same teacher.
Resumable: what was chosen and what accuracy came of it is kept beside the record, half-done work under ``--work``;
``--only`` does some of the steps, so that those that measure latency (``latency``, ``choose``, ``measure``) can have a
core or a GPU to themselves. ``compare`` takes of ``--seeds`` those that are finetuned, and finetunes where none is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from cifar_runs import NETWORKS
from contest import WAYS, Contest, digest
from record import RESULTS, ROOT, write_record

STEPS = ("latency", "importance", "choose", "measure", "finetune", "compare")
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "torch-pruning")


def finetune(contest: Contest) -> None:
    """Finetune what every way chose with every seed, several at once where there are to be more processes than one."""
    arguments = contest.arguments
    each_once = {
        (digest(way, choice), seed): (contest.name, arguments, way, x, seed)
        for seed in arguments.seeds
        for x in arguments.speedups
        for way in arguments.ways
        if (choice := contest.choice(way, x))["reached"] and not contest.is_done(way, x, seed)
    }
    tasks = list(each_once.values())
    if arguments.processes == 1:
        for task in tasks:
            finetune_one(*task)
    else:
        with ProcessPoolExecutor(arguments.processes, multiprocessing.get_context("spawn")) as pool:
            for training in [pool.submit(finetune_one, *task) for task in tasks]:
                training.result()


def finetune_one(name: str, arguments: argparse.Namespace, way: str, speedup: float, seed: int) -> None:
    Contest(name, arguments).accuracy_pct(way, speedup, seed)


def print_rows(name: str, found: dict[str, Any]) -> None:
    """Print the table of one network."""
    print(f"\n{name}: original {found['original_accuracy_pct']:.2f} %, {found['original_ms']:.4g} ms")
    print(f"{'way':<18}{'asked':>7}{'measured':>10}{'accuracy':>11}")
    for row in found["rows"]:
        asked = f"{row['speedup_asked']:g}x"
        if row["reached"]:
            print(
                f"{row['way']:<18}{asked:>7}{row['measured_speedup']:>9.3f}x{row['accuracy_pct']:>9.2f} %"
                f"{rounding_of(row)}"
            )
        else:
            print(f"{row['way']:<18}{asked:>7}   not reached; the most is {row['most']:.3f}x")
    for row in found["published"]:
        print(f"{row['checkpoint']:<25}{row['measured_speedup']:>9.3f}x{row['accuracy_pct']:>9.2f} % (published)")


def rounding_of(row: dict[str, Any]) -> str:
    """Return which ``round_to`` was the best of those tried, where a row is a pruning."""
    tried = [str(each["round_to"]) for each in row.get("tried", ())]
    return f"   (round_to={row['round_to']}, the best of {', '.join(tried)})" if tried else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.2, 1.4, 1.7], metavar="X")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        default=list(WAYS[:5]),
        metavar="WAY",
        help=f"of {', '.join(WAYS)} (default: all but the last)",
    )
    parser.add_argument("--importance", default="shared", metavar="METHOD", help="of layerfold's own table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="of finetuning")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of each training, in place of epochs")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="of finetuning (default: the network's)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--backend", default="onnxruntime", metavar="NAME")
    parser.add_argument("--device", metavar="NAME", help="of the backend")
    parser.add_argument("--train-device", default="cpu", metavar="NAME")
    parser.add_argument(
        "--by-table",
        type=float,
        metavar="PCT",
        help="choose by the table alone, for a speed-up larger by so much, and measure at the end only",
    )
    parser.add_argument("--cap-s", type=float, default=10.0, metavar="S", help="most seconds of measuring per network")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="that fill importance tables and finetune, at once"
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--work", type=Path, default=ROOT / "build/shorten_cifar10", metavar="FOLDER")
    parser.add_argument(
        "--kept", type=Path, default=RESULTS / "accuracy_cifar10", metavar="FOLDER", help="of choices and accuracies"
    )
    parser.set_defaults(search_epochs=1)  # names a folder of shorten_cifar10.py, whose baselines and tables are used
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.networks or ["mobilenetv2_050_cifar", "resnet20"]:
        contest = Contest(name, arguments)
        if "latency" in arguments.only:
            _ = contest.run.latency
        if "importance" in arguments.only:
            contest.fill_importances()
        for speedup in arguments.speedups:
            for way in arguments.ways:
                if "choose" in arguments.only:
                    contest.choice(way, speedup)
        if "finetune" in arguments.only:
            finetune(contest)
        if "measure" in arguments.only:
            contest.measure()
        if "compare" in arguments.only:
            results[name] = contest.compare()
            print_rows(name, results[name])
    if results:
        earlier = RESULTS / "accuracy_cifar10.json"
        if earlier.exists():
            results = {**json.loads(earlier.read_text())["results"], **results}
        write_record("accuracy_cifar10", results, {"threads": 1, "batch": 1}, packages=_PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
