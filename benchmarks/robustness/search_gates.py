"""The learned search on a real network and real images: does it end where it was told to, also when it is killed?

    python benchmarks/robustness/search_gates.py [--steps 24] [--kills 20] [--seed 0]

ResNet-20 with its published weights on CIFAR-10. It searches to numbers of gates, for slots and for blocks, from
none to all, and to latency budgets over the range that the table can reach, and one that it cannot. And one search is
killed with SIGKILL at random moments, each life a process of its own, and restarted until it has ended; its solution,
scores and weights are compared with those of a search left alone. What latencies the table holds does not matter here,
so it is made in seconds. Ends 1 unless every number is exact, every budget kept, and the two searches are bit-equal,
the last life having gone on from where a killed one was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
from lives import life
from record import ROOT, shared_path, write_record

import layerfold as lf
from layerfold.profiler import get_backend
from layerfold.search import GRANULARITIES, BestMerging, activations_left, list_gates

_FACTORY = ROOT / "benchmarks/lib/cifar_resnet.py"
_SHARES = (0.0, 0.25, 0.5, 0.8, 1.0)
_STEPS_A_LIFE = 4
_REACH = (0.1, 0.4, 0.7, 1.0)
"""Budgets, as a share of the way from the original's latency to the least."""


class Case:
    """The network, its images and its table."""

    def __init__(self, steps: int, seed: int) -> None:
        loaded = lf.load_model(f"{_FACTORY}:resnet20", weights=shared_path() / "checkpoints/resnet20-12fca82f.th")
        self.model = loaded.module.eval()
        self.net = lf.trace_network(self.model, torch.zeros(1, *loaded.input_shape))
        self.data = lf.open_data(
            f"parquet:{shared_path() / 'data/cifar10'}",
            input_shape=loaded.input_shape,
            mean=loaded.mean,
            std=loaded.std,
            interpolation=loaded.interpolation,
            crop_pct=loaded.crop_pct,
            num_classes=loaded.num_classes,
        )
        self.table = lf.profile_network(
            self.model,
            self.net,
            get_backend("onnxruntime", threads=1),
            cache=False,
            method="isolated",
            cap_s=0.02,
            candidates=self.net.candidates(max_growth=4.0),
            progress=False,
        )
        self.training = lf.FinetuneOptions(steps=steps, batch_size=32, learning_rate=0.02, seed=seed)

    def search(self, checkpoint: Path | None = None, steps: int | None = None, **target: Any) -> lf.SearchResult:
        training = replace(self.training, steps=steps or self.training.steps)
        return lf.search_activations(
            self.model,
            self.net,
            self.data,
            latency=self.table,
            training=training,
            checkpoint_path=checkpoint,
            checkpoint_every_s=0.0,
            progress=False,
            **target,
        )


def numbers(case: Case) -> list[dict[str, Any]]:
    """Search to every number of :data:`_SHARES`."""
    rows = []
    for granularity in GRANULARITIES:
        num_gates = len(list_gates(case.net, granularity))
        for keep in sorted({round(share * num_gates) for share in _SHARES}):
            found = case.search(keep=keep, granularity=granularity)
            on = sum(gate.is_on for gate in found.gates)
            # Beyond the number asked for, on stays only what stands where merging stops all the same.
            ranked = sorted(found.gates, key=lambda gate: -gate.score)
            beyond = {position for gate in ranked[keep:] if gate.is_on for position in gate.positions}
            rows.append(
                {
                    "granularity": granularity,
                    "gates": num_gates,
                    "asked": keep,
                    "on": on,
                    "is_exact": on >= keep and beyond <= set(found.solution.merge_pos),
                }
            )
            print(f"{granularity}: {on} of {num_gates} on, {keep} asked", file=sys.stderr, flush=True)
    return rows


def least_of(case: Case) -> float:
    """Return the predicted latency with every gate off."""
    gates = list_gates(case.net, "slot")
    return BestMerging(case.net, case.table).predict_ms(activations_left(case.net, gates, [False] * len(gates)))


def budgets(case: Case) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Search to every budget of :data:`_REACH`, and to one that is out of reach."""
    least_ms, original_ms, rows = least_of(case), case.table.original_ms, []
    for reach in _REACH:
        budget_ms = original_ms - reach * (original_ms - least_ms)
        solution = case.search(budget_ms=budget_ms * (1 + 1e-9)).solution
        assert solution.predicted_ms is not None
        predicted_ms = case.table.predict_ms(solution)
        rows.append(
            {
                "speedup_asked": original_ms / budget_ms,
                "speedup": original_ms / predicted_ms,
                "is_within": predicted_ms <= budget_ms * (1 + 1e-9),
                "activations": len(solution.act_pos),
            }
        )
        print(
            f"{original_ms / budget_ms:.3f}x asked, {original_ms / predicted_ms:.3f}x predicted",
            file=sys.stderr,
            flush=True,
        )
    try:
        case.search(budget_ms=0.9 * least_ms)
        unreachable = {"is_refused": False}
    except lf.InfeasibleBudgetError as error:
        named = error.least_ms
        unreachable = {"is_refused": True, "names_the_least": abs(named - least_ms) <= 1e-9 * least_ms}
    return rows, unreachable


def killed(case: Case, kills: int, seed: int) -> dict[str, Any]:
    """Kill and restart one search; compare what it ends with.

    A kill comes within half a second after a life has kept its first step, so that each goes on from the one before.
    """
    target = {"budget_ms": (case.table.original_ms + least_of(case)) / 2}
    rng, lives, steps = random.Random(seed), [], _STEPS_A_LIFE * kills
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(way: str) -> None:
            found = case.search(folder / f"{way}.checkpoint", steps, **target)
            resumed = {"resumed_from_step": found.training.resumed_from_step}
            (folder / f"{way}.json").write_text(json.dumps({"outcome": outcome_of(found), **resumed}))

        began = time.monotonic()
        life(lambda: run("whole"), None)
        whole_s = time.monotonic() - began
        checkpoint = folder / "killed.checkpoint"
        while len(lives) < kills and not (folder / "killed.json").exists():
            before = changed_at(checkpoint)
            ended = life(lambda: run("killed"), rng.uniform(0.0, 0.5), until=lambda: changed_at(checkpoint) != before)  # noqa: B023 - called within this round
            lives += [ended] if ended == -signal.SIGKILL else []
        in_time = not (folder / "killed.json").exists()
        life(lambda: run("killed"), None)
        whole, again = (json.loads((folder / f"{way}.json").read_text()) for way in ("whole", "killed"))
    return {
        "kills": len(lives),
        "kills_before_the_end": in_time,
        "steps": steps,
        "undisturbed_s": round(whole_s, 1),
        "resumed_from_step": again["resumed_from_step"],
        **{f"same_{part}": value == again["outcome"][part] for part, value in whole["outcome"].items()},
    }


def changed_at(path: Path) -> int:
    """Return when a file was last written, 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def outcome_of(found: lf.SearchResult) -> dict[str, Any]:
    """Return what has to be the same to the bit: solution, scores, and a hash of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(found.weights.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return {
        "solution": found.solution.to_json(),
        "scores": [gate.score for gate in found.gates],
        "weights": digest.hexdigest(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=24, help="of training, 32 images each (%(default)s)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a forked child cannot use the threads of its parent
    case = Case(arguments.steps, arguments.seed)
    # First: a process that has run autograd cannot be forked into others that run it.
    resumed = killed(case, arguments.kills, arguments.seed)
    print(resumed, file=sys.stderr, flush=True)
    exact = numbers(case)
    within, unreachable = budgets(case)
    write_record(
        "search_gates",
        {"numbers": exact, "budgets": within, "unreachable": unreachable, "killed": resumed},
        vars(arguments),
        packages=("torch", "torchvision", "onnxruntime", "numpy"),
    )
    is_same = all(value for key, value in resumed.items() if key.startswith("same"))
    has_gone_on = resumed["kills"] == arguments.kills and resumed["resumed_from_step"] >= arguments.kills
    return int(
        not (
            all(row["is_exact"] for row in exact)
            and all(row["is_within"] for row in within)
            and all(unreachable.values())
            and is_same
            and has_gone_on
        )
    )


if __name__ == "__main__":
    sys.exit(main())
