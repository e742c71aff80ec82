"""`layerfold finetune` killed with SIGKILL at random moments and started again until done, against one left alone.

    python benchmarks/robustness/finetune_kill.py [--kills 20] [--seed 0]

ResNet-20 with dropout, in train form, on CIFAR-10 images with augmentation, mixup, CutMix, label smoothing, an average
of the weights and the original as teacher; a checkpoint every --checkpoint-every seconds. Each life runs the command in
a process of its own, forked from one that has imported everything, so that the kill falls into the training and not
into importing torch. The kills are spread over the work: for each a number of steps is drawn in advance, and it comes a
random time after the checkpoint says that they are done. A life that ends before its kill is not counted as one. Ends 1
unless the weights are those of the undisturbed run to the bit, and the log is the same but for the seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from cifar_part import write_part
from lives import life
from record import ROOT, shared_path, write_record

_SPREAD_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--images", type=int, default=400, help="of CIFAR-10, a tenth of them the holdout")
    parser.add_argument("--checkpoint-every", type=float, default=0.2, metavar="S")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = kill_and_restart(**vars(args))
    write_record("finetune_kill", results, vars(args), packages=("torch", "timm", "accelerate"))
    return int(not results["passed"])


def kill_and_restart(
    *, kills: int, steps: int, batch_size: int, images: int, checkpoint_every: float, seed: int
) -> dict[str, Any]:
    """Return what undisturbed and killed training left behind, compared."""
    import torch
    from safetensors.torch import load_file

    import layerfold as lf
    from layerfold.cli import main as layerfold

    torch.set_num_threads(1)  # a forked child cannot use the threads of its parent
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_part(folder / "data", train=images)
        model = f"{ROOT / 'benchmarks/lib/cifar_resnet.py'}:resnet20_dropout"
        weights = shared_path() / "checkpoints/resnet20-12fca82f.th"
        net = lf.trace_network(lf.load_model(model).module.eval(), torch.zeros(1, 3, 32, 32))
        stops = tuple(sorted({residual.dst for residual in net.residuals} | {chain.end for chain in net.chains}))
        lf.Solution(act_pos=stops, merge_pos=stops, network_hash=net.hash).write(folder / "solution.json")

        def finetune(output: Path) -> int:
            return layerfold(
                [
                    "finetune",
                    model,
                    "--weights",
                    str(weights),
                    "--data",
                    data,
                    "--solution",
                    str(folder / "solution.json"),
                    "--steps",
                    str(steps),
                    "--batch-size",
                    str(batch_size),
                    "--mixup",
                    "0.2",
                    "--cutmix",
                    "1",
                    "--label-smoothing",
                    "0.1",
                    "--ema",
                    "0.99",
                    "--learning-rate",
                    "0.01",
                    "--save-both",
                    "--checkpoint-every",
                    str(checkpoint_every),
                    "--no-test",
                    "--quiet",
                    "-o",
                    str(output),
                ]
            )

        whole, killed = folder / "whole.safetensors", folder / "killed.safetensors"
        began = time.perf_counter()
        life(lambda: finetune(whole), None, lambda: True)
        whole_s = time.perf_counter() - began
        checkpoint = Path(f"{killed}.checkpoint")
        targets = sorted(rng.randrange(steps - 5) for _ in range(kills))
        lives: list[dict[str, Any]] = []
        for target in targets:
            wait_s = rng.uniform(0, _SPREAD_S)
            ended = life(lambda: finetune(killed), wait_s, lambda: steps_done(checkpoint) >= target)  # noqa: B023
            lives.append({"target": target, "steps_kept": steps_done(checkpoint), "ended": ended})
        began = time.perf_counter()
        life(lambda: finetune(killed), None, lambda: True)
        num_killed = sum(each["ended"] == -signal.SIGKILL for each in lives)
        kept = [each["steps_kept"] for each in lives]
        found: dict[str, Any] = {
            "steps": steps,
            "undisturbed_s": round(whole_s, 1),
            "last_life_s": round(time.perf_counter() - began, 1),
            "kills": num_killed,
            "kills_at_different_steps": len(set(kept)),
        }
        facts = json.loads(Path(f"{killed}.json").read_text())["facts"]
        found["resumed_from_step"] = facts["finetune"]["resumed_from_step"]
        for label, suffix in (("last", ".safetensors"), ("best", ".best.safetensors")):
            one, other = (load_file(path.with_suffix(suffix)) for path in (whole, killed))
            found[f"tensors_{label}"] = len(one)
            found[f"{label}_weights_bit_equal"] = one.keys() == other.keys() and all(
                torch.equal(one[key], other[key]) for key in one
            )
        found["same_log"] = log_of(whole) == log_of(killed)
        found["left_behind"] = sorted(path.name for path in folder.iterdir() if "partial" in path.name)
        found["lives"] = lives
        found["passed"] = (
            num_killed == kills
            and found["last_weights_bit_equal"]
            and found["best_weights_bit_equal"]
            and found["same_log"]
        )
        return found


def steps_done(checkpoint: Path) -> int:
    """Return the steps that a checkpoint holds; 0 without one."""
    import torch

    if not checkpoint.exists():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["state"]["step"])


def log_of(output: Path) -> list[dict[str, str]]:
    """Return the rows of the run's log without the seconds."""
    with Path(f"{output}.log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


if __name__ == "__main__":
    sys.exit(main())
