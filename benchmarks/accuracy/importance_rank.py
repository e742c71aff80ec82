"""How well cheap importances rank entries: against finetuning each of them, on CIFAR-10.

    python benchmarks/accuracy/importance_rank.py                        # both networks, every step; hours on two cores
    python benchmarks/accuracy/importance_rank.py resnet20 --only reference --workers 2
    python benchmarks/accuracy/importance_rank.py resnet20 --only cheap cost plans

The reference finetunes the network of each entry (``--steps`` steps of 128 images); ``cheap`` estimates the same
entries by each other method; ``cost`` times both in turns on a few entries, one thread each; ``plans`` solves with the
reference and with ``shared``, takes of the latter's plans the best as a whole network too, and of those on the way to
it the best after a short finetuning (as ``compress`` does, but for measuring), and finetunes what they choose alike.
Entries: all of ResNet-20's; of MobileNetV2's ``--entries``, spread over lengths and depths, half of them with dropped
layers.
Resumable: work is kept under
``--work``, and the reference, which takes an hour of both cores, and what finetuning its plans gave beside the record.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import torch
from cifar_runs import NETWORKS, Run
from record import RESULTS, ROOT, write_record
from scipy.stats import spearmanr

import layerfold as lf
from layerfold.graph import Segment
from layerfold.importance import FinalistScores, WholeScores, remove_journal
from layerfold.importance.requests import NOTHING
from layerfold.options.solve import MOST_WHOLES
from layerfold.solver import climb_plans
from layerfold.tables.kernel import SegmentKey

STEPS = ("reference", "cheap", "cost", "plans")
PLANNED = "shared"
"""The cheap method whose plans are finetuned."""

_WHOLES, _FINALISTS = f"{PLANNED}, wholes", f"{PLANNED}, finalists"
"""Of these plans, the best as a whole network; and of those on the way there, the best after a short finetuning."""

CHEAP = ("taylor", "recalibrate", "distill", "shared")
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "onnxruntime")
_HOLDOUT = 1000
_TIMED_ENTRIES = 4
"""Of the reference; the cheap methods are timed on all, for what they do once is shared by all."""


def entries_of(run: Run, count: int) -> list[Segment]:
    """Return the entries to rank: those that change something, every one or ``count`` of them, spread."""
    whole = [each for each in run.candidates if each.num_layers > 1 and not each.dropped]
    drops = [each for each in run.candidates if each.dropped]
    if len(whole) + len(drops) <= count:
        return whole + drops
    return spread(whole, count - count // 2) + spread(drops, count // 2)


def spread(segments: list[Segment], count: int) -> list[Segment]:
    """Return ``count`` segments, evenly over all, ordered by length and then by depth."""
    ordered = sorted(segments, key=lambda each: (each.num_layers, each.start, each.merged))
    return [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]


class Ranking:
    """One network's estimates by every method."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.arguments = name, arguments
        self.run = Run(name, arguments)
        self.entries = entries_of(self.run, arguments.entries)
        self.singles = [each for each in self.run.net.candidates() if each.num_layers == 1]
        self.folder = arguments.work / name / f"rank-{arguments.steps}-steps"
        self.kept = RESULTS / "importance_rank" / name
        for folder in (self.folder, self.kept):
            folder.mkdir(parents=True, exist_ok=True)

    def estimate(
        self, method: str, entries: list[Segment], journal: Path, *, workers: int | None = None, **how: Any
    ) -> lf.ImportanceTable:
        """Estimate entries, and every single layer, which costs nothing."""
        executor = lf.Executor(workers=workers or self.arguments.workers, threads=1)
        return lf.estimate_importance(
            self.run.loaded.module,
            self.run.net,
            self.run.data,
            method,
            candidates=[*self.singles, *entries],
            score="loss",
            fill_slots=False,
            holdout_images=_HOLDOUT,
            journal_path=journal,
            executor=executor,
            model_name=self.name,
            **how,
        )

    def table(self, method: str, path: Path, **how: Any) -> lf.ImportanceTable:
        """Return the table by one method, made once."""
        if not path.exists():
            journal = path.with_suffix(".journal")
            self.estimate(method, self.entries, journal, **how).write(path)
            remove_journal(journal)
        return lf.ImportanceTable.read(path)

    def how(self, method: str) -> dict[str, Any]:
        """Return the options of a method."""
        if method == "finetune":
            # It uses no calibration images, but the references that are kept name as many.
            return {"steps": self.arguments.steps, "learning_rate": NETWORKS[self.name][1], "calibration_images": 512}
        return {}

    @cached_property
    def reference(self) -> lf.ImportanceTable:
        path = self.kept / f"finetune-{self.arguments.steps}-steps.csv"
        return self.table("finetune", path, **self.how("finetune"))

    def cheap(self) -> dict[str, Any]:
        """Return each method's rank correlation with the reference, and the seconds of both."""
        methods = {}
        for method in CHEAP:
            table = self.table(method, self.folder / f"{method}.csv")
            methods[method] = {"rank": _rank(table, self.reference), "seconds": _seconds(table)}
        return {"entries": len(self.entries), "reference_seconds": _seconds(self.reference), "methods": methods}

    def cost(self) -> dict[str, Any]:
        """Time the reference and each cheap method in one run, one thread each: seconds per entry."""
        few, took = spread(self.entries, _TIMED_ENTRIES), {}
        for method in ("finetune", *CHEAP):
            entries = few if method == "finetune" else self.entries
            with tempfile.TemporaryDirectory() as folder:
                journal = Path(folder) / "journal"
                self.estimate(method, entries, journal, workers=1, **self.how(method))
                took[method] = _seconds_of_entries(journal) / len(entries)
        return {"entries": len(few), "seconds_an_entry": took}

    def plans(self) -> list[dict[str, Any]]:
        """Solve with the reference and with one cheap method, and finetune what they choose alike."""
        both = {segment.key for segment in (*self.singles, *self.entries)}
        known = [entry for entry in self.run.latency.entries if entry.key in both]
        latency = lf.LatencyTable(known, provenance=self.run.latency.provenance)
        cheap = self.table(PLANNED, self.folder / f"{PLANNED}.csv")
        of_plans = self.run.loaded.module, self.run.net, self.run.data
        score = WholeScores(*of_plans, holdout_images=_HOLDOUT)
        training = lf.FinetuneOptions(learning_rate=NETWORKS[self.name][1])
        finalist = FinalistScores(*of_plans, training, holdout_images=_HOLDOUT)
        rows = []
        for speedup in self.arguments.speedups:
            budget_ms = latency.original_ms / speedup
            row: dict[str, Any] = {"budget_ms": budget_ms, "speedup": speedup}
            first = _without((), latency, cheap, budget_ms)
            assert first is not None
            began = time.perf_counter()
            wholes = climb_plans(
                first, score, partial(_without, latency=latency, table=cheap, budget_ms=budget_ms), most=MOST_WHOLES
            )
            row["seconds_of_wholes"] = time.perf_counter() - began
            began = time.perf_counter()
            after = [finalist(each.solution) for each in wholes] if len(wholes) > 1 else []
            row |= {"seconds_of_finalists": time.perf_counter() - began, "finalists": after}
            best = wholes[after.index(max(after)) if after else 0].solution
            reference = lf.solve_frontier(latency, self.reference).at(budget_ms=budget_ms)
            chosen = {"finetune": reference, PLANNED: first, _WHOLES: wholes[-1].solution, _FINALISTS: best}
            for way, solution in chosen.items():
                row[way] = {
                    "solution": solution.to_json(),
                    "whole": score(solution),
                    "accuracy_pct": [self.accuracy_pct(solution, seed) for seed in self.arguments.seeds],
                }
            mean_pct = {way: statistics.mean(row[way]["accuracy_pct"]) for way in chosen}
            ours = PLANNED, _WHOLES, _FINALISTS
            row["lost_points"] = {way: round(mean_pct["finetune"] - mean_pct[way], 3) for way in ours}
            rows.append(row)
            print(f"{self.name}: {row}", file=sys.stderr, flush=True)
        return rows

    def accuracy_pct(self, solution: lf.Solution, seed: int) -> float:
        """Return the test accuracy after finetuning from the baseline, with it as the teacher."""
        choice = [solution.act_pos, solution.merge_pos, solution.kept_layers, self.arguments.plan_epochs, seed]
        name = hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:12]
        done, checkpoint = self.kept / f"plan-{name}.json", self.folder / f"plan-{name}.checkpoint"
        if not done.exists():
            student = lf.build_train_form(self.run.teacher, self.run.net, solution)
            lf.finetune_network(
                student.to(memory_format=torch.channels_last),
                self.run.data,
                teacher=self.run.teacher,
                epochs=self.arguments.plan_epochs,
                learning_rate=NETWORKS[self.name][1],
                seed=seed,
                checkpoint_path=checkpoint,
                description=f"{self.name}, {solution.predicted_ms:.4g} ms, seed {seed}",
            )
            done.write_text(json.dumps(lf.evaluate_network(student, self.run.data.split("test")).accuracy_pct))
            checkpoint.unlink(missing_ok=True)
        return float(json.loads(done.read_text()))


def _without(
    left_out: Collection[SegmentKey], latency: lf.LatencyTable, table: lf.ImportanceTable, budget_ms: float
) -> lf.Solution | None:
    """Return the best plan without some segments."""
    entries = [each for each in latency.entries if each.key not in left_out]
    try:
        return lf.solve_frontier(lf.LatencyTable(entries, provenance=latency.provenance), table).at(budget_ms=budget_ms)
    except lf.InfeasibleBudgetError:
        return None


def _rank(one: lf.ImportanceTable, other: lf.ImportanceTable) -> float:
    """Return Spearman's correlation of importances by loss, of the entries that change something."""
    keys = [key for key, entry in one.by_key.items() if entry.end - entry.start > 1 or entry.kept is not None]
    found = spearmanr([one.by_key[key].importance for key in keys], [other.by_key[key].importance for key in keys])
    return float(found.statistic)


def _seconds(table: lf.ImportanceTable) -> float:
    return float(table.provenance.options["seconds"])


def _seconds_of_entries(journal: Path) -> float:
    """Return what entries took, and what was done once for all; the original, which is trained too, does not count."""
    lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()[1:]]
    original = asdict(NOTHING) | {"dropped": []}
    return sum(line["seconds"] for line in lines if line["entry"] != original)


def record(name: str, step: str, found: Any, arguments: argparse.Namespace) -> None:
    """Put what a step found into the record, beside what other commands have put there by now."""
    path = RESULTS / "importance_rank.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    of_network = results.setdefault(name, {})
    if step == "plans":
        speedups = {row["speedup"] for row in found}
        found = [*(row for row in of_network.get(step, ()) if row["speedup"] not in speedups), *found]
        found.sort(key=lambda row: float(row["speedup"]))
    of_network[step] = found
    of_network.setdefault("made", {})[step] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    settings = {key: value for key, value in vars(arguments).items() if key not in ("work", "only", "networks")}
    write_record("importance_rank", results, settings, packages=_PACKAGES)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of the reference, per entry")
    parser.add_argument("--entries", type=int, default=48, metavar="N")
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.2, 1.4, 1.7], metavar="X", help="of plans")
    parser.add_argument("--plan-epochs", type=int, default=1, metavar="N", help="of finetuning what the tables choose")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of that finetuning")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that fill tables, one thread each"
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--work", type=Path, default=ROOT / "build/shorten_cifar10", metavar="FOLDER")
    parser.set_defaults(epochs=2, search_epochs=1, backend="onnxruntime", device=None)  # of shorten_cifar10.py
    arguments = parser.parse_args()
    for name in arguments.networks or ["resnet20", "mobilenetv2_050_cifar"]:
        ranking = Ranking(name, arguments)
        for step in arguments.only:
            found = getattr(ranking, step)
            if step != "reference":
                record(name, step, found() if callable(found) else found, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
