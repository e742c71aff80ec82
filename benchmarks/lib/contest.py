"""What every way makes of one network of CIFAR-10: its choices, their measured latency, their accuracy."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from cifar_runs import NETWORKS, Run
from rivals import DSP, DSP_MEAN, DSP_STD, EXAMPLE, best_pruning, dsp_onnx, load_dsp, paper, prune, uniform
from torch import nn

import layerfold as lf
from layerfold.budget import Budget
from layerfold.export import export_onnx
from layerfold.importance import FinalistScores, WholeScores, remove_journal
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import meet_budget

WAYS = ("layerfold", "compress", "paper", "uniform", "global pruning", "pruning")
_PAPER_STEPS = 25
"""Of finetuning an entry: the paper's is an epoch of ImageNet on two GPUs."""

_HOLDOUT_IMAGES = 1000
_MOST_ROUNDS, _MARGIN = 4, 0.01
"""How often a way chooses at most, and how much smaller than needed its next budget is."""


class Contest:
    """One network, and what every way makes of it."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name, self.arguments = name, arguments
        self.run = Run(name, arguments)
        length = f"{arguments.epochs}-epochs" if arguments.steps is None else f"{arguments.steps}-steps"
        self.folder: Path = self.run.folder / "accuracy"
        self.folder.mkdir(parents=True, exist_ok=True)
        place = arguments.backend if arguments.device is None else f"{arguments.backend}-{arguments.device}"
        self.kept: Path = arguments.kept / name / f"{place}-{length}"
        self.kept.mkdir(parents=True, exist_ok=True)

    @cached_property
    def original(self) -> nn.Module:
        return self.run.loaded.module

    @cached_property
    def merging_latency(self) -> lf.LatencyTable:
        """The paper's table: every layer stays, and nothing is merged past the layer behind a stride."""
        allowed = {(each.start, each.end) for each in self.run.net.candidates(stop_at_strides=True)}
        table = self.run.latency
        kept = [each for each in table.entries if not each.drops and (each.start, each.end) in allowed]
        return lf.LatencyTable(kept, provenance=table.provenance)

    @cached_property
    def paper_importance(self) -> lf.ImportanceTable:
        return self._importance(
            "paper",
            "finetune",
            self.merging_latency,
            score="accuracy",
            steps=_PAPER_STEPS,
            learning_rate=NETWORKS[self.name][1],
        )

    @property
    def learning_rate(self) -> float | None:
        """Of finetuning; None for the optimizer's own."""
        asked: float | None = self.arguments.learning_rate
        return NETWORKS[self.name][1] if asked is None else asked

    @cached_property
    def importance(self) -> lf.ImportanceTable:
        method = self.arguments.importance
        budgets = tuple(self.run.latency.original_ms / each for each in self.arguments.speedups)
        adaptive = {"refinement": lf.Refinement(budgets_ms=budgets)} if method == "adaptive" else {}
        return self._importance(method, method, self.run.latency, score="loss", **adaptive)

    @cached_property
    def least_merging_ms(self) -> float:
        """The fastest that a plan can be that keeps every layer, whatever the importances."""
        return lf.solve_frontier(self.merging_latency, _flat(self.merging_latency)).least_ms

    def fill_importances(self) -> None:
        """Fill the tables that the ways choose by, the paper's where it reaches any of the speed-ups."""
        if {"layerfold", "compress"} & set(self.arguments.ways):
            _ = self.importance
        slowest_ms = self.run.latency.original_ms / min(self.arguments.speedups)
        if "paper" in self.arguments.ways and self.least_merging_ms <= slowest_ms:
            _ = self.paper_importance

    def _importance(self, name: str, method: str, latency: lf.LatencyTable, **how: Any) -> lf.ImportanceTable:
        path = self.folder / f"importance-{name}.csv"
        if not path.exists():
            journal = path.with_suffix(".journal")
            lf.estimate_importance(
                self.original,
                self.run.net,
                self.run.data,
                method,
                latency=latency,
                holdout_images=_HOLDOUT_IMAGES,
                journal_path=journal,
                model_name=self.name,
                executor=lf.Executor(devices=(self.arguments.train_device,) * self.arguments.processes),
                **how,
            ).write(path)
            remove_journal(journal)
        return lf.ImportanceTable.read(path)

    def speedup_of(self, network: nn.Module) -> float:
        """Measure a network in turns with the original."""
        found = lf.benchmark_networks(
            {"original": self.original, "other": network.eval()}, EXAMPLE, self.run.backend, target=0.005
        )
        return 1 / found["other"].ratio

    def choice(self, way: str, speedup: float) -> dict[str, Any]:
        """Return what a way chooses for a measured speed-up: a solution, a pruning, or how far it reaches."""
        path = self.kept / f"{self._file(way)}-{speedup:g}.json"
        if not path.exists() or self._is_outdated(way, path):
            if "pruning" in way:
                found = best_pruning(self.original, speedup, self.speedup_of, is_global=way == "global pruning")
            else:
                found = self._verified(speedup) if way == "compress" else self._solution(way, speedup)
            print(f"{self.name}, {way}, {speedup:g}x: {found}"[:300], file=sys.stderr, flush=True)
            path.write_text(json.dumps(found) + "\n")
        answer: dict[str, Any] = json.loads(path.read_text())
        return answer

    def _file(self, way: str) -> str:
        """Return what files of a way begin with."""
        return f"{way}-by-{self.arguments.importance}" if way in ("layerfold", "compress") else way.replace(" ", "-")

    def _trained(self, way: str, speedup: float, seed: int) -> str:
        """Return what files of a finetuned network are called."""
        return f"{self._file(way)}-{speedup:g}-{seed}"

    @staticmethod
    def _is_outdated(way: str, path: Path) -> bool:
        """Say whether a kept pruning was chosen before channels were rounded."""
        return "pruning" in way and "tried" not in json.loads(path.read_text())

    def _verified(self, speedup: float) -> dict[str, Any]:
        """Choose as ``compress`` does: the loop that measures, plans as wholes, and finalists."""
        run = self.run
        of_plans = self.original, run.net, run.data
        training = lf.FinetuneOptions(learning_rate=self.learning_rate, batch_size=self.arguments.batch_size)
        try:
            found = meet_budget(
                run.net,
                run.latency,
                self.importance,
                Budget(speedup=speedup),
                BackendMeter(self.original, run.net, run.latency, run.backend),
                score_plan=WholeScores(*of_plans, holdout_images=_HOLDOUT_IMAGES),
                score_finalist=FinalistScores(*of_plans, training, holdout_images=_HOLDOUT_IMAGES, progress=True),
            )
        except lf.InfeasibleBudgetError as error:
            return {"reached": False, "most": speedup * error.budget_ms / error.least_ms, "rounds": []}
        return {
            "reached": True,
            "solution": found.solution.to_json(),
            "speedup": 1 / found.verification.ratio,
            "rounds": [
                {"predicted_ms": each.predicted_ms, "speedup": 1 / each.verification.ratio} for each in found.rounds
            ],
            "wholes": [each.score for each in found.wholes],
            "finalists": found.finalist_scores,
        }

    def _solution(self, way: str, speedup: float) -> dict[str, Any]:
        latency, rounds, by_table = self.run.latency, [], self.arguments.by_table
        budget_ms = latency.original_ms / (speedup * (1 + (by_table or 0) / 100))
        while True:
            try:
                solution = self._solve(way, budget_ms)
            except lf.InfeasibleBudgetError as error:
                return {"reached": False, "most": latency.original_ms / error.least_ms, "rounds": rounds}
            if by_table is not None:
                return {
                    "reached": True,
                    "solution": solution.to_json(),
                    "predicted_speedup": latency.original_ms / latency.predict_ms(solution),
                    "rounds": [],
                }
            found = lf.verify_solution(self.original, self.run.net, solution, self.run.backend, speedup=speedup)
            rounds.append({"budget_ms": budget_ms, "speedup": 1 / found.ratio})
            if found.is_within_budget or len(rounds) == _MOST_ROUNDS:
                return {"reached": True, "solution": solution.to_json(), "speedup": 1 / found.ratio, "rounds": rounds}
            budget_ms *= (1 - _MARGIN) / (found.ratio_high * speedup)

    def _solve(self, way: str, budget_ms: float) -> lf.Solution:
        if way == "layerfold":
            return lf.solve_frontier(self.run.latency, self.importance).at(budget_ms=budget_ms)
        if way == "paper":
            # Where no plan that keeps every layer is fast enough, no importance would help.
            if (least_ms := self.least_merging_ms) > budget_ms:
                raise lf.InfeasibleBudgetError(f"budget {budget_ms:.6g} ms", budget_ms=budget_ms, least_ms=least_ms)
            return paper(self.merging_latency, self.paper_importance, budget_ms)
        return uniform(self.run.net, self.run.latency, budget_ms)

    def student(self, way: str, choice: dict[str, Any]) -> nn.Module:
        """Return the network that a choice stands for, before training."""
        if "pruning" in way:
            share, round_to = choice["share"], choice["round_to"]
            return prune(self.original, share, is_global=way == "global pruning", round_to=round_to)
        return lf.build_train_form(self.original, self.run.net, lf.Solution.from_json(choice["solution"]))

    def is_done(self, way: str, speedup: float, seed: int) -> bool:
        """Say whether what a way chooses was finetuned with this seed."""
        return self._found(way, speedup, seed) is not None

    def _found(self, way: str, speedup: float, seed: int) -> dict[str, Any] | None:
        """Return what came of the network that a way chooses, whichever way it was finetuned for."""
        wanted = digest(way, self.choice(way, speedup))
        every = (json.loads(path.read_text()) for path in sorted(self.kept.glob(f"*-{seed}.json")))
        return next((each for each in every if each.get("chosen") == wanted), None)

    def accuracy_pct(self, way: str, speedup: float, seed: int) -> float:
        """Finetune what a way chose, unless another chose the same, and return its accuracy on the test images."""
        name, choice = self._trained(way, speedup, seed), self.choice(way, speedup)
        path, checkpoint = self.kept / f"{name}.json", self.folder / f"{name}-{self.kept.name}.checkpoint"
        if (found := self._found(way, speedup, seed)) is None:
            student = self.student(way, choice).to(memory_format=torch.channels_last)
            options = self.arguments
            report = lf.finetune_network(
                student,
                self.run.data,
                teacher=self.run.teacher,
                epochs=options.epochs,
                steps=options.steps,
                batch_size=options.batch_size,
                learning_rate=self.learning_rate,
                seed=seed,
                mixed_precision=options.mixed_precision,
                checkpoint_path=checkpoint,
                device=options.train_device,
                description=f"{self.name}, {way}, {speedup:g}x",
            )
            test = self.run.data.split("test")
            accuracy_pct = lf.evaluate_network(student.to(options.train_device), test).accuracy_pct
            found = {"accuracy_pct": accuracy_pct, "seconds": report.seconds, "chosen": digest(way, choice)}
            partial = path.with_suffix(".part")  # other processes read what is there
            partial.write_text(json.dumps(found) + "\n")
            partial.replace(path)
            checkpoint.unlink(missing_ok=True)
        return float(found["accuracy_pct"])

    def deployed(self, way: str, choice: dict[str, Any]) -> bytes:
        """Return the network as it is deployed, untrained: latency does not depend on the weights."""
        path = self.folder / f"deployed-{digest(way, choice)}.onnx"
        if not path.exists():
            student = self.student(way, choice)
            path.write_bytes(export_onnx((student if "pruning" in way else lf.merge_network(student)).eval(), EXAMPLE))
        return path.read_bytes()

    def measure(self) -> dict[str, Any]:
        """Measure everything chosen, and the published checkpoints, in turns with the original, and keep it."""
        networks: dict[str, Any] = {"original": self.original}
        chosen = {}
        for way, x in self._every:
            if (choice := self.choice(way, x))["reached"]:
                networks[_name(way, x)] = self.deployed(way, choice)
                chosen[_name(way, x)] = digest(way, choice)
        networks |= {each: dsp_onnx(each) for each in DSP.get(self.name, ())}
        report = lf.benchmark_networks(networks, EXAMPLE, self.run.backend, is_patient=True, cap_s=self.arguments.cap_s)
        found = {
            "networks": {each.name: _measured(each) for each in report.networks},
            "chosen": chosen,
            "provenance": report.provenance,
        }
        self._latencies_path.write_text(json.dumps(found, indent=1) + "\n")
        return found

    def latencies(self) -> dict[str, Any]:
        """Return what was measured, again where something else has been chosen since."""
        wanted = {
            _name(way, x): digest(way, choice) for way, x in self._every if (choice := self.choice(way, x))["reached"]
        }
        if self._latencies_path.exists():
            found: dict[str, Any] = json.loads(self._latencies_path.read_text())
            if wanted.items() <= found["chosen"].items():
                return found
        return self.measure()

    @property
    def _latencies_path(self) -> Path:
        return self.kept / "latencies.json"

    @property
    def _every(self) -> list[tuple[str, float]]:
        return [(way, x) for x in self.arguments.speedups for way in self.arguments.ways]

    def compare(self) -> dict[str, Any]:
        """Put together what was chosen, measured and trained."""
        latencies, every = self.latencies(), self._every
        rows = [{"way": way, "speedup_asked": x, **self.choice(way, x)} for way, x in every]
        for row, (way, x) in zip(rows, every, strict=True):
            if row["reached"]:
                row |= latencies["networks"][_name(way, x)]
                seeds = self.arguments.seeds
                done = [seed for seed in seeds if self.is_done(way, x, seed)] or seeds
                row["accuracies_pct"] = {seed: self.accuracy_pct(way, x, seed) for seed in done}
                row["accuracy_pct"] = statistics.mean(row["accuracies_pct"].values())
        original, test = copy.deepcopy(self.original).to(self.arguments.train_device), self.run.data.split("test")
        published = [
            {"way": "dsp", "checkpoint": each, **latencies["networks"][each], "accuracy_pct": self._dsp_accuracy(each)}
            for each in DSP.get(self.name, ())
        ]
        return {
            "settings": {key: value for key, value in vars(self.arguments).items() if key not in _NO_SETTINGS},
            "original_accuracy_pct": lf.evaluate_network(original, test).accuracy_pct,
            "original_ms": latencies["networks"]["original"]["latency_ms"],
            "rows": rows,
            "published": published,
            "provenance": latencies["provenance"],
        }

    def _dsp_accuracy(self, name: str) -> float:
        path = self.kept.parent / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps({"accuracy_pct": self._scored_dsp(name)}) + "\n")
        return float(json.loads(path.read_text())["accuracy_pct"])

    def _scored_dsp(self, name: str) -> float:
        of = self.run.untrained
        data = lf.open_data(
            f"parquet:{_cifar()}",
            input_shape=of.input_shape,
            mean=DSP_MEAN,
            std=DSP_STD,
            crop_pct=1.0,
            num_classes=of.num_classes,
        )
        return lf.evaluate_network(load_dsp(name), data.split("test")).accuracy_pct


_NO_SETTINGS = ("work", "kept", "only", "networks", "search_epochs")


def _cifar() -> Path:
    from record import shared_path

    return shared_path() / "data/cifar10"


def digest(way: str, choice: dict[str, Any]) -> str:
    """Return a name of the network that a choice stands for, alike for ways that chose the same."""
    solution = choice.get("solution", {})
    network = (
        [way, choice["share"], choice["round_to"]]
        if "pruning" in way
        else [solution["act_pos"], solution["merge_pos"], solution["kept_layers"]]
    )
    return hashlib.sha256(json.dumps(network).encode()).hexdigest()[:12]


def _name(way: str, speedup: float) -> str:
    return f"{way}, {speedup:g}x"


def _measured(found: Any) -> dict[str, float]:
    return {
        "latency_ms": found.median_ms,
        "measured_speedup": 1 / found.ratio,
        "ratio_low": found.ratio_low,
        "ratio_high": found.ratio_high,
    }


def _flat(latency: lf.LatencyTable) -> lf.ImportanceTable:
    """Return importances that are all alike: with them only latency counts."""
    from layerfold.tables import ImportanceEntry

    return lf.ImportanceTable(
        [
            ImportanceEntry(start=each.start, end=each.end, start_act=1, end_act=1, importance=0.0)
            for each in latency.entries
        ],
        provenance=lf.Provenance(kind="importance", chains=latency.chains),
    )
