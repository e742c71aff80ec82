"""An importance table filled by a Ray cluster of two workers, left alone and killed again and again.

    python benchmarks/robustness/executor_ray.py [--kills 10] [--weights resnet20.safetensors]

ResNet-20 on CIFAR-10. The tables must equal that of one process to the bit: in every process torch has one thread.
Then workers are killed with SIGKILL at random moments while ``shared`` trains its weights and fills the table; the
table must be complete and the same, and no kill may cost more than the work of the one entry that the worker had.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
from baselines import finetune_published
from record import ROOT, shared_path, write_record

import layerfold as lf
from layerfold.executor import Executor
from layerfold.executor.cluster import ClusterGroup

METHODS = ("recalibrate", "distill", "shared")
_TITLE = b"ray::TaskRunner"


class Run:
    """The network and its images; fills tables."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.work = arguments, arguments.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        weights = arguments.weights or finetune_published(self.work)
        self.loaded = of = lf.load_model(f"{ROOT / 'benchmarks/lib/cifar_resnet.py'}:resnet20", weights=weights)
        self.net = lf.trace_network(of.module, torch.zeros(1, *of.input_shape))
        self.data = lf.open_data(
            f"parquet:{shared_path() / 'data/cifar10'}",
            input_shape=of.input_shape,
            mean=of.mean,
            std=of.std,
            interpolation=of.interpolation,
            crop_pct=of.crop_pct,
            num_classes=of.num_classes,
        )
        norms = lf.layer_norms(of.module, self.net)
        self.candidates = self.net.candidates(max_kernel=arguments.max_kernel, layer_norms=norms)

    def fill(self, method: str, executor: Executor, journal: Path | None = None) -> tuple[lf.ImportanceTable, float]:
        began = time.monotonic()
        table = lf.estimate_importance(
            self.loaded.module,
            self.net,
            self.data,
            method,
            candidates=self.candidates,
            executor=executor,
            steps=self.arguments.steps,
            holdout_images=self.arguments.holdout_images,
            journal_path=journal,
        )
        return table, time.monotonic() - began


class Killer(threading.Thread):
    """Kills a worker's process again and again, each time some entries later and a random while after that."""

    def __init__(self, kills: int, journal: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self._kills, self._journal, self._random = kills, journal, random.Random(seed)
        self.killed: list[str] = []
        """What each was at: a process title."""

    def run(self) -> None:
        lines = 0  # the first is killed while the cluster starts, or while it trains the shared weights
        while len(self.killed) < self._kills:
            if self._lines() <= lines:
                time.sleep(0.01)
                continue
            time.sleep(self._random.uniform(0, 1.5))
            workers = list(_workers())
            if workers:
                pid, title = self._random.choice(workers)
                os.kill(pid, signal.SIGKILL)
                self.killed.append(title)
                lines = self._lines() + 1

    def _lines(self) -> int:
        return self._journal.read_bytes().count(b"\n") if self._journal.exists() else 0


def _workers() -> Any:
    """Yield (pid, title) of the cluster's actors: Ray names their processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue  # it has just ended
        if title.startswith(_TITLE):
            yield int(path.parent.name), title.strip(b"\0").decode()


def count_attempts() -> Counter[str]:
    """Return a count, by entry, of how often workers are asked; it goes on counting."""
    asked: Counter[str] = Counter()
    ask = ClusterGroup.ask

    def counting(self: ClusterGroup, worker: Any, task: Any) -> None:
        request = getattr(task, "request", task)  # a lesson is asked for as it is
        if request is not None:
            asked[repr(request)] += 1
        ask(self, worker, task)

    ClusterGroup.ask = counting  # type: ignore[method-assign]
    return asked


def main() -> int:
    parser = argparse.ArgumentParser(description="Importance on a local Ray cluster against one process.")
    parser.add_argument("--kills", type=int, default=10, metavar="N")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of ResNet-20 (default: finetuned here)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of distill and shared, per entry")
    parser.add_argument("--max-kernel", type=int, default=7, metavar="K")
    parser.add_argument("--holdout-images", type=int, default=256, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments of the kills")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "executor_ray")
    arguments = parser.parse_args()
    run = Run(arguments)
    here, ray = Executor(threads=1), Executor(kind="ray", workers=2, threads=1)
    results: dict[str, Any] = {"entries": len(run.candidates)}
    local = {}
    for method in METHODS:
        local[method], local_s = run.fill(method, here)
        table, ray_s = run.fill(method, ray)
        results[method] = {
            "is_equal": table.entries == local[method].entries,
            "one_process_s": round(local_s, 1),
            "ray_s": round(ray_s, 1),
        }
    journal = run.work / "killed.journal"
    journal.unlink(missing_ok=True)
    asked, killer = count_attempts(), Killer(arguments.kills, journal, arguments.seed)
    killer.start()
    table, killed_s = run.fill("shared", ray, journal)
    again = [count - 1 for count in asked.values() if count > 1]
    estimated = journal.read_text().count("\n") - 1
    results["killed"] = {
        "kills": len(killer.killed),
        "at": dict(Counter(killer.killed)),
        "entries_estimated": estimated,
        "entries_begun_again": sum(again),
        "is_equal": table.entries == local["shared"].entries,
        "seconds": round(killed_s, 1),
    }
    write_record("executor_ray", results, {**vars(arguments), "work": None, "weights": None}, packages=("torch", "ray"))
    is_good = (
        all(results[each]["is_equal"] for each in (*METHODS, "killed"))
        and len(killer.killed) == arguments.kills
        and sum(again) <= arguments.kills
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
