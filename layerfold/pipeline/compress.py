"""All steps in their order: the only place that knows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from layerfold.data import ImageData
from layerfold.finetune import unfreeze_parameters
from layerfold.graph import trace_network
from layerfold.graph.copying import copy_module
from layerfold.importance import weights_hash
from layerfold.models import LoadedModel
from layerfold.modules import plain_module, public_call
from layerfold.pipeline.equality import probe_images
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.outcomes import (
    Benched,
    Estimated,
    Exported,
    Finetuned,
    Merged,
    Profiled,
    Scored,
    Solved,
    StepOutcome,
    Traced,
)
from layerfold.pipeline.plan_scores import finalist_steps
from layerfold.pipeline.preflight import check_candidates, check_inputs
from layerfold.pipeline.run_config import completed
from layerfold.pipeline.run_folder import RunFolder
from layerfold.pipeline.steps import Job, Steps
from layerfold.pipeline.summary import FILES, RunOutcome, write_summary
from layerfold.progress import waiting
from layerfold.report import ReportData, StepTime
from layerfold.settings import takes_settings
from layerfold.solver import Solution

_WITHOUT_A_BAR = ("trace", "merge", "export", "evaluate", "bench")
"""Steps that show no bar of their own."""
_Outcome = TypeVar("_Outcome", bound=StepOutcome)


@dataclass(frozen=True, kw_only=True)
class CompressResult:
    """Result of a compression.

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

    Example:
        >>> result = lf.compress_network(model, data, fastest=True, finetune_epochs=0, out="out", progress=False)
        >>> result.merged(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 2])
        >>> sorted(path.name for path in result.out.glob("*.onnx"))
        ['model.onnx', 'original.onnx']
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
        job = _job_of(module, loaded, data, options or CompressOptions())
        folder = _open_folder(job, Path(out), overwrite=overwrite)
        return _Run(Steps(job, folder, progress=progress), command).all_steps()


def _job_of(model: nn.Module, loaded: LoadedModel | None, data: ImageData, options: CompressOptions) -> Job:
    """Check the inputs and trace the model."""
    options = options.settled(data)
    check_inputs(model, data, options)
    options = replace(options, finalist_steps=finalist_steps(options, data))
    backend = options.open_backend()
    if options.unfreeze:
        model = copy_module(model)
        unfreeze_parameters(model)
    images = probe_images(data, options.seed)
    return Job(
        name=loaded.source if loaded is not None else type(model).__name__,
        model=model,
        num_classes=loaded.num_classes if loaded is not None else None,
        data=data,
        options=options,
        backend=backend,
        images=images,
        net=trace_network(model, images[:1], exclude=options.exclude, merge_pooling=options.merge_pooling),
    )


def _open_folder(job: Job, out: Path, *, overwrite: bool) -> RunFolder:
    """Return the folder, empty or of the same run."""
    if not (out / "latency.csv").exists():  # a run that has a table had something to merge
        check_candidates(job.candidates, job.options)
    config = {
        "model": job.name,
        "network": job.net.hash,
        "weights": weights_hash(job.model),
        "data": {"name": job.data.name, "fingerprint": job.data.fingerprint},
        "device": job.backend.provenance()["device"],
        **job.options.as_config(),
    }
    known_files = [name for name, _ in FILES if name != "run.json"]
    return RunFolder(
        out,
        config,
        overwrite=overwrite,
        known_files=[*known_files, "report.html"],
        first_uses=job.options.first_uses(),
        complete=lambda stored: completed(stored, job.data),
    )


class _Run:
    """All steps in their order, each done at most once."""

    def __init__(self, steps: Steps, command: str) -> None:
        self._steps, self._command = steps, command
        self._folder, self._progress = steps.folder, steps.progress

    def all_steps(self) -> CompressResult:
        """Do every step that is not done yet."""
        steps, folder = self._steps, self._folder
        latency, importance = _with_sidecar("latency.csv"), _with_sidecar("importance.csv")
        finetuned, merged = _with_sidecar("finetuned.safetensors"), _with_sidecar("merged.safetensors")
        has_finetuning = bool(steps.job.epochs)
        self._step(Traced, "trace", ["network.json", "original.onnx"], steps.trace, reads=[], is_repeatable=True)
        self._step(Profiled, "profile", latency, steps.profile, reads=["original.onnx"])
        self._step(Estimated, "importance", importance, steps.importance, reads=latency)
        solved = self._step(
            Solved,
            "solve and verify",
            ["solution.json", "frontier.csv", "verification.json"],
            steps.solve_and_verify,
            reads=["original.onnx", *latency, *importance],
        )
        if has_finetuning:
            self._step(
                Finetuned,
                "finetune",
                finetuned,
                steps.finetune,
                reads=["solution.json"],
                scratch=["finetune.checkpoint"],
            )
        self._step(Merged, "merge", merged, steps.merge, reads=finetuned if has_finetuning else ["solution.json"])
        exported = self._step(
            Exported,
            "export",
            ["model.onnx"],
            steps.export,
            reads=merged,
            perhaps=["model.onnx.json", "model.engine", "model.engine.json"],
        )
        scored = self._step(Scored, "evaluate", ["scores.json"], steps.evaluate, reads=merged)
        benched = self._step(Benched, "bench", ["bench.json"], steps.bench, reads=["original.onnx", "model.onnx"])
        report = write_summary(self._outcome(solved, exported, scored, benched))
        folder.check_whole()
        if not benched.is_within_budget:
            folder.forget("bench", keep_files=["bench.json"])  # the same command measures again
        return CompressResult(
            out=folder.path,
            merged=steps.merged,
            solution=steps.solution,
            report=report,
            is_budget_met=benched.is_within_budget,
        )

    def _outcome(self, solved: Solved, exported: Exported, scored: Scored, benched: Benched) -> RunOutcome:
        steps, job = self._steps, self._steps.job
        return RunOutcome(
            out=self._folder.path,
            name=job.name,
            command=self._command,
            options=job.options,
            data=job.data,
            backend=job.backend.provenance(),
            net=job.net,
            latency=steps.latency,
            importance=steps.importance_table,
            solution=steps.solution,
            num_params=sum(parameter.numel() for parameter in steps.merged.parameters()),
            steps=tuple(
                StepTime(name=each.name, seconds=each.seconds, is_resumed=each.is_resumed)
                for each in self._folder.records
            ),
            solved=solved,
            exported=exported,
            scored=scored,
            benched=benched,
        )

    def _step(
        self,
        kind: type[_Outcome],
        name: str,
        outputs: Sequence[str],
        work: Callable[[], _Outcome],
        *,
        reads: Sequence[str],
        perhaps: Sequence[str] = (),
        scratch: Sequence[str] = (),
        is_repeatable: bool = False,
    ) -> _Outcome:
        """Do a step unless it is done, and return its record as the folder has it; see :meth:`RunFolder.step`."""
        with waiting(f"{name}, at work", enabled=self._progress and name in _WITHOUT_A_BAR):
            record = self._folder.step(
                name,
                outputs,
                lambda: work().to_json(),
                reads=reads,
                perhaps=perhaps,
                scratch=scratch,
                is_repeatable=is_repeatable,
            )
        if self._progress:
            state = "done before" if record.is_resumed else f"{record.seconds:.1f} s"
            print(f"{name}: {state}", file=sys.stderr, flush=True)
        return kind.from_json(record.result, source=f"{self._folder.file('run.json')}: steps.{name}.result")


def _with_sidecar(name: str) -> list[str]:
    return [name, f"{name}.json"]
