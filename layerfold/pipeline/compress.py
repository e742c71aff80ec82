"""All steps in their order: the only place that knows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from layerfold.data import ImageData
from layerfold.export import check_onnx, export_network, export_onnx
from layerfold.export.network import FORMATS
from layerfold.files import write_bytes
from layerfold.finetune import (
    FINETUNED,
    NO_BATCH_NORM,
    RECALIBRATED,
    Scores,
    evaluate_network,
    finetune_network,
    has_batch_norm,
    recalibrate_batch_norm,
    unfreeze_parameters,
)
from layerfold.graph import Network, Segment, check_same_function, example_images, layer_norms, trace_network
from layerfold.graph.copying import copy_module
from layerfold.importance import estimate_importance, remove_journal, weights_hash
from layerfold.merge import build_train_form, merge_network
from layerfold.merge.files import Recipe, load_form, save_form
from layerfold.models import LoadedModel
from layerfold.modules import plain_module, public_call
from layerfold.options import LoopOptions, PlanScores, Refinement, RunOptions
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import check_reachable, meet_budget
from layerfold.pipeline.equality import MOST_DIFFERENCE, batches_of, check_same, probe_images
from layerfold.pipeline.network_json import describe_network
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.plan_scores import finalist_scores, whole_scores
from layerfold.pipeline.preflight import check_candidates, check_inputs, importance_method
from layerfold.pipeline.run_folder import RunFolder, StepRecord
from layerfold.pipeline.summary import FILES, write_summary
from layerfold.profiler import benchmark_networks, profile_network
from layerfold.profiler.backends import Backend
from layerfold.profiler.fitted import plans_of
from layerfold.profiler.verify import judge
from layerfold.progress import waiting
from layerfold.report import ReportData
from layerfold.settings import takes_settings
from layerfold.solver import Solution
from layerfold.tables import ImportanceTable, LatencyTable

_WITHOUT_A_BAR = ("trace", "merge", "export", "evaluate", "bench")
"""Steps that show no bar of their own."""
_MOST_BENCH_TRIES = 3
_SHARES_OF_BUDGET = (0.9, 0.95, 1.0, 1.05, 1.1)


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """What a compression gave.

    Attributes:
        out: the output folder.
        merged: the network in deploy form, in eval mode.
        solution: what was merged.
        report: all that the report page shows.
        is_budget_met: whether the last measurement keeps the budget, upper end of its interval included.
    """

    out: Path
    merged: nn.Module
    solution: Solution
    report: ReportData
    is_budget_met: bool


@takes_settings(options=CompressOptions)
@public_call
def compress_network(
    model: nn.Module | LoadedModel,
    data: ImageData,
    *,
    out: str | Path,
    options: CompressOptions | None = None,
    overwrite: bool = False,
    progress: bool = True,
    command: str = "",
    **settings: Any,
) -> CompressResult:
    """Compress a trained CNN to a latency budget: every step of docs/design.md, in one folder.

    The same call again goes on where an interrupted one stopped, and does nothing twice.

    Args:
        model: the trained network; left untouched. A ``LoadedModel`` also says how to build it again, so that its
            checkpoints can be loaded without this program.
        data: images in three splits, of the model's input shape.
        out: output folder.
        options, settings: see :class:`CompressOptions`; a setting given by name takes the place of that of ``options``,
            and a budget that of another budget. One of ``budget_ms``, ``speedup`` and ``fastest`` must be given.
        overwrite: start over where ``out`` holds another run. A setting that nothing which was done depends on may
            change without it: after a budget that nothing meets, another one.
        progress: show bars on stderr.
        command: the command line, for the report.

    Raises:
        UsageError: a setting outside its range; ``out`` holds another run; a model that gives no logits, or is frozen.
        UnsupportedGraphError: the model cannot be traced.
        InfeasibleBudgetError: no plan meets the budget; names the least that can be met.
        EquivalenceError: what was traced, or merged, computes something else than the model.
        DataError, ProfilerError, FinetuneError, ExportError: the step that failed says why.
    """
    loaded = model if isinstance(model, LoadedModel) else None
    module = plain_module(model.module) if isinstance(model, LoadedModel) else model
    if module.training:
        module = copy_module(module).eval()  # the caller's stays in training mode
    other = next((each.dtype for each in module.parameters() if each.dtype != torch.float32), None)
    if other is not None:
        module = copy_module(module).float()
        if progress:
            print(f"model is {str(other).removeprefix('torch.')}: works on a float32 copy", file=sys.stderr)
    with RunFolder.only_one(out):
        run = _Run(module, loaded, data, options or CompressOptions(), Path(out), overwrite, progress, command)
        return run.all_steps()


class _Run:
    """One compression: its inputs, its folder, and a method a step."""

    def __init__(
        self,
        model: nn.Module,
        loaded: LoadedModel | None,
        data: ImageData,
        options: CompressOptions,
        out: Path,
        overwrite: bool,
        progress: bool,
        command: str,
    ) -> None:
        options = options.settled(data)
        self.name = loaded.source if loaded is not None else type(model).__name__
        check_inputs(model, data, options)
        self.backend: Backend = options.open_backend()
        if options.unfreeze:
            model = copy_module(model)
            unfreeze_parameters(model)
        self.model, self.loaded, self.data, self.options = model, loaded, data, options
        self.progress, self.command = progress, command
        self.images = probe_images(data, options.seed)
        self.net: Network = trace_network(
            model, self.images[:1], exclude=options.exclude, merge_pooling=options.merge_pooling
        )
        if not (out / "latency.csv").exists():  # a run that has a table had something to merge
            check_candidates(self.candidates, options)
        config = {
            "model": self.name,
            "network": self.net.hash,
            "weights": weights_hash(model),
            "data": {"name": data.name, "fingerprint": data.fingerprint},
            "device": self.backend.provenance()["device"],
            **options.as_config(),
        }
        known_files = [name for name, _ in FILES if name != "run.json"]
        self.folder = RunFolder(
            out, config, overwrite=overwrite, known_files=[*known_files, "report.html"], first_uses=options.first_uses()
        )

    @cached_property
    def candidates(self) -> list[Segment]:
        """What is measured."""
        return self.net.candidates(
            max_kernel=self.options.max_kernel,
            max_growth=self.options.max_growth,
            layer_norms=layer_norms(self.model, self.net) if self.options.drop_layers else None,
        )

    def all_steps(self) -> CompressResult:
        """Do every step that is not done yet."""
        latency, importance = _with_sidecar("latency.csv"), _with_sidecar("importance.csv")
        finetuned, merged = _with_sidecar("finetuned.safetensors"), _with_sidecar("merged.safetensors")
        has_finetuning = bool(self._epochs)
        self._step("trace", ["network.json", "original.onnx"], self._trace, reads=[], is_repeatable=True)
        self._step("profile", latency, self._profile, reads=["original.onnx"])
        self._step("importance", importance, self._importance, reads=latency)
        self._step(
            "solve and verify",
            ["solution.json", "frontier.csv", "verification.json"],
            self._solve_and_verify,
            reads=["original.onnx", *latency, *importance],
        )
        if has_finetuning:
            self._step("finetune", finetuned, self._finetune, reads=["solution.json"], scratch=["finetune.checkpoint"])
        self._step("merge", merged, self._merge, reads=finetuned if has_finetuning else ["solution.json"])
        self._step(
            "export",
            ["model.onnx"],
            self._export,
            reads=merged,
            perhaps=["model.onnx.json", "model.engine", "model.engine.json"],
        )
        self._step("evaluate", ["scores.json"], self._evaluate, reads=merged)
        bench = self._step("bench", ["bench.json"], self._bench, reads=["original.onnx", "model.onnx"])
        report = write_summary(self)
        self.folder.check_whole()
        if not bench.result["is_within_budget"]:
            self.folder.forget("bench", keep_files=["bench.json"])  # the same command measures again
        return CompressResult(
            out=self.folder.path,
            merged=self.merged,
            solution=self.solution,
            report=report,
            is_budget_met=bool(bench.result["is_within_budget"]),
        )

    def _step(self, name: str, outputs: list[str], work: Callable[[], dict[str, Any] | None], **how: Any) -> StepRecord:
        with waiting(f"{name}, at work", enabled=self.progress and name in _WITHOUT_A_BAR):
            record = self.folder.step(name, outputs, work, **how)
        if self.progress:
            state = "done before" if record.is_resumed else f"{record.seconds:.1f} s"
            print(f"{name}: {state}", file=sys.stderr, flush=True)
        return record

    # What steps hand to each other is read back from the folder, so that a resumed run sees the same.

    @cached_property
    def latency(self) -> LatencyTable:
        return LatencyTable.read(self.folder.file("latency.csv"))

    @cached_property
    def importance(self) -> ImportanceTable:
        return ImportanceTable.read(self.folder.file("importance.csv"))

    @cached_property
    def solution(self) -> Solution:
        return Solution.read(self.folder.file("solution.json"))

    @cached_property
    def merged(self) -> nn.Module:
        return load_form(self.folder.file("merged.safetensors"), self.model).module.eval()

    @cached_property
    def original_onnx(self) -> bytes:
        return self.folder.file("original.onnx").read_bytes()

    @cached_property
    def meter(self) -> BackendMeter:
        return BackendMeter(
            self.model, self.net, self.latency, self.backend, batch=self.options.batch, original_onnx=self.original_onnx
        )

    @property
    def _epochs(self) -> int:
        return self.options.finetune_epochs or 0

    @property
    def recipe(self) -> Recipe:
        """How to build the network again."""
        return Recipe(
            model=self.name,
            num_classes=self.loaded.num_classes if self.loaded is not None else None,
            in_channels=self.data.input_shape[0],
            input_shape=self.data.input_shape,
            exclude=self.options.exclude,
            merge_pooling=self.options.merge_pooling,
            solution=self.solution,
        )

    def batch_example(self) -> Tensor:
        """Return random images of the batch size that is measured."""
        return example_images((self.options.batch, *self.data.input_shape), seed=self.options.seed)

    def _trace(self) -> dict[str, Any]:
        self.data.preload()  # a broken image shows now, not after the profile
        self._check_trace()
        onnx_bytes = export_onnx(self.model, self.batch_example())
        self._check_onnx(onnx_bytes, self.model)
        write_bytes(self.folder.file("original.onnx"), onnx_bytes)
        self.folder.write_json("network.json", describe_network(self.net))
        return {"layers": len(self.net.layers), "chains": len(self.net.chains), "residuals": len(self.net.residuals)}

    def _check_trace(self) -> None:
        """Refuse a graph, or a train form that changes nothing, that computes something else than the model."""
        check_same_function(self.model, self.net.graph.on(self.model), self.images)
        unchanged = Solution(act_pos=self.net.original_act_pos, merge_pos=tuple(range(1, len(self.net.layers) + 1)))
        check_same_function(self.model, build_train_form(self.model, self.net, unchanged).eval(), self.images)

    def _check_onnx(self, onnx_bytes: bytes, module: nn.Module) -> None:
        """Refuse an ONNX file that computes something else than its module, on images like those of the data.

        Raises:
            ExportError: it does.
        """
        for images in batches_of(self.images, self.options.batch):
            check_onnx(onnx_bytes, module, images, MOST_DIFFERENCE)

    def _profile(self) -> dict[str, Any]:
        how = replace(
            self.options.profile, dtype=self.backend.precision, candidates=self.candidates, model_name=self.name
        )
        table = profile_network(self.model, self.net, self.backend, options=how, progress=self.progress)
        table.write(self.folder.file("latency.csv"))
        return {"candidates": len(self.candidates), "plans": len(plans_of(table))}

    def _importance(self) -> dict[str, Any]:
        # Here, not with the profile, so that another budget finds the profile done.
        check_reachable(self.net, self.latency, self.options.budget, self.meter, progress=self.progress)
        journal = self.folder.file("importance.journal")
        how = replace(
            self.options.importance,
            method=importance_method(self.options, self.data),
            refinement=Refinement(budgets_ms=self._near_the_budget()),
            model_name=self.name,
        )
        table = estimate_importance(
            self.model,
            self.net,
            self.data,
            options=how,
            latency=self.latency,
            journal_path=journal,
            progress=self.progress,
        )
        table.write(self.folder.file("importance.csv"))
        remove_journal(journal)
        return {"entries": len(table.entries), "left_out": len(table.provenance.left_out)}

    def _near_the_budget(self) -> tuple[float, ...]:
        """Return latencies whose plans the budget loop may come to: predictions are some per cent off."""
        budget_ms = self.options.budget.in_ms(self.latency.original_ms)
        return tuple(share * budget_ms for share in _SHARES_OF_BUDGET)

    def _solve_and_verify(self) -> dict[str, Any]:
        of_plans = self.model, self.net, self.data, self.options
        with waiting("verify: the original's scores", enabled=self.progress):
            scores, finalists = whole_scores(*of_plans), finalist_scores(*of_plans, progress=self.progress)
        found = meet_budget(
            self.net,
            self.latency,
            self.importance,
            self.options.budget,
            self.meter,
            options=LoopOptions(alpha=self.options.alpha, margin=self.options.margin),
            scores=PlanScores(score_plan=scores, most_wholes=self.options.whole_plans, score_finalist=finalists),
            progress=self.progress,
        )
        solution = replace(
            found.solution,
            model=self.name,
            network_hash=self.net.hash,
            measured_ms=found.verification.measured_ms,
            budget_ms=found.verification.budget_ms,
        )
        solution.write(self.folder.file("solution.json"))
        found.frontier.write_csv(self.folder.file("frontier.csv"))
        rounds = [
            {
                "predicted_ms": each.predicted_ms,
                "importance": each.solution.importance,
                "is_within": each.is_within,
                **each.verification.to_json(),
            }
            for each in found.rounds
        ]
        wholes: dict[str, Any] = {"score": scores and scores.score, "taken": found.whole_scores}
        if finalists is not None and found.finalists:
            wholes |= {
                "finalists": found.finalist_scores,
                "finalist_steps": finalists.steps,
                "chosen": found.chosen_finalist,
            }
        self.folder.write_json(
            "verification.json", {"chosen": found.verification.to_json(), "rounds": rounds, "wholes": wholes}
        )
        points = [[point.predicted_ms, point.importance] for point in found.frontier]
        return {"rounds": rounds, "frontier": points, "wholes": wholes}

    def _train_form(self) -> fx.GraphModule:
        return build_train_form(self.model, self.net, self.solution)

    def _finetune(self) -> dict[str, Any]:
        student = self._train_form()
        checkpoint = self.folder.file("finetune.checkpoint")
        run = RunOptions(
            checkpoint_path=checkpoint,
            device=self.options.train_device,
            progress=self.progress,
            description="finetune",
        )
        report = finetune_network(student, self.data, self.options.finetune, teacher=self.model, run=run)
        save_form(
            student,
            self.folder.file("finetuned.safetensors"),
            kind="train",
            recipe=self.recipe,
            facts={"batch_norm": FINETUNED, "finetune": report.as_dict()},
        )
        checkpoint.unlink(missing_ok=True)
        return report.as_dict()

    def _merge(self) -> dict[str, Any]:
        """Merge, and compare the network that its file gives back with its train form."""
        if self._epochs:
            student = load_form(self.folder.file("finetuned.safetensors"), self.model).module
            batch_norm = FINETUNED
        else:
            student, batch_norm = self._recalibrated(), RECALIBRATED
        path = self.folder.file("merged.safetensors")
        save_form(
            merge_network(student.eval()),
            path,
            kind="deploy",
            recipe=self.recipe,
            facts={"batch_norm": batch_norm if has_batch_norm(student) else NO_BATCH_NORM},
        )
        self.__dict__.pop("merged", None)
        difference = check_same(self.merged, student, self.images, "the merged network and its train form")
        return {"max_difference": difference}

    def _recalibrated(self) -> fx.GraphModule:
        """Without finetuning, BatchNorm statistics are measured again: what the importances stand for."""
        student = self._train_form().to(self.options.train_device)
        recalibrate_batch_norm(student, self.data, batch_size=self.options.batch_size)
        return student.to("cpu")

    def _export(self) -> dict[str, Any]:
        asked = self.options.formats
        report = export_network(
            self.merged,
            self.folder.path,
            formats=asked or FORMATS,
            example_input=self.batch_example(),
            skip_missing=asked is None,
            preprocessing=self.data.details.get("preprocessing"),
            precision=self.backend.precision,  # of an engine; an ONNX file is float32, and its runtime goes lower
        )
        self._check_onnx(report.onnx_path.read_bytes(), self.merged)
        return report.to_json()

    def _evaluate(self) -> dict[str, Any]:
        device, test = self.options.train_device, self.data.test
        original, compressed = copy_module(self.model).to(device), self.merged.to(device)
        teacher = None if self.data.is_labelled else original
        scores: dict[str, Scores] = {
            "original": evaluate_network(original, test, teacher=teacher),
            "compressed": evaluate_network(compressed, test, teacher=original),
        }
        compressed.to("cpu")
        self.folder.write_json("scores.json", {name: asdict(each) for name, each in scores.items()})
        return {name: asdict(each) for name, each in scores.items()}

    def _bench(self) -> dict[str, Any]:
        """Measure the exported files against each other; a reading over the budget is repeated, longer."""
        networks = {"original": self.original_onnx, "compressed": self.folder.file("model.onnx").read_bytes()}
        for attempt in range(_MOST_BENCH_TRIES):
            report = benchmark_networks(
                networks, None, self.backend, target=0.005, cap_s=5.0 * 2**attempt, is_patient=attempt > 0
            )
            within = self.options.budget.is_kept_by(judge(report, self.options.budget))
            if within:
                break
        self.folder.write_json("bench.json", report.to_json())
        return {"is_within_budget": within, "attempts": attempt + 1, **report.to_json()}


def _with_sidecar(name: str) -> list[str]:
    return [name, f"{name}.json"]
