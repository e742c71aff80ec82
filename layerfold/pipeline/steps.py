"""The steps of a compression: each does its work, writes its files, and returns the record of what it gave.

What steps hand to each other lies in files, and is read back from them, so that a resumed run sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, fx, nn

from layerfold.data import ImageData
from layerfold.export import check_onnx, export_network, export_onnx
from layerfold.export.network import FORMATS
from layerfold.files import write_bytes
from layerfold.finetune import (
    FINETUNED,
    NO_BATCH_NORM,
    RECALIBRATED,
    evaluate_network,
    finetune_network,
    has_batch_norm,
    recalibrate_batch_norm,
)
from layerfold.graph import Network, Segment, check_same_function, example_images, layer_norms
from layerfold.graph.copying import copy_module
from layerfold.importance import estimate_importance, remove_journal
from layerfold.merge import build_train_form, merge_network
from layerfold.merge.files import Recipe, load_form, save_form
from layerfold.options import ExportOptions, LoopOptions, PlanScores, Refinement, RunOptions
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import check_reachable, meet_budget
from layerfold.pipeline.equality import MOST_DIFFERENCE, batches_of, check_same
from layerfold.pipeline.int8 import export_int8
from layerfold.pipeline.network_json import describe_network
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.outcomes import (
    ORIGINAL_INT8,
    Benched,
    Estimated,
    Exported,
    Finetuned,
    Merged,
    NetworkScores,
    Profiled,
    Scored,
    Solved,
    Traced,
)
from layerfold.pipeline.plan_scores import finalist_scores, whole_scores
from layerfold.pipeline.run_folder import RunFolder
from layerfold.profiler import benchmark_networks, profile_network
from layerfold.profiler.backends import Backend
from layerfold.profiler.plans.fitted import plans_of
from layerfold.profiler.verify import judge
from layerfold.progress import waiting
from layerfold.quantise import OnnxModule
from layerfold.solver import Solution
from layerfold.tables import ImportanceTable, LatencyTable

_MOST_BENCH_TRIES = 3
_SHARES_OF_BUDGET = (0.9, 0.95, 1.0, 1.05, 1.1)


@dataclass(kw_only=True, eq=False)
class Job:
    """Network to be compressed, images and options.

    Attributes:
        name: of the model, as the user called it.
        model: the trained network, in eval mode, in float32.
        num_classes: that it was built with; None where it takes its own.
        data: images in three splits.
        options: settled.
        backend: what latency is measured with.
        images: a few, real and of noise, that networks are compared on.
        net: the traced network.
    """

    name: str
    model: nn.Module
    num_classes: int | None
    data: ImageData
    options: CompressOptions
    backend: Backend
    images: Tensor
    net: Network

    @cached_property
    def candidates(self) -> list[Segment]:
        """Segments that are measured."""
        return self.net.candidates(
            max_kernel=self.options.max_kernel,
            max_growth=self.options.max_growth,
            layer_norms=layer_norms(self.model, self.net) if self.options.drop_layers else None,
        )

    @property
    def epochs(self) -> int:
        """Epochs of the finetuning; 0 for none."""
        return self.options.finetune_epochs or 0

    def recipe(self, solution: Solution) -> Recipe:
        """Return how to build the network of a solution again."""
        return Recipe(
            model=self.name,
            num_classes=self.num_classes,
            in_channels=self.data.input_shape[0],
            input_shape=self.data.input_shape,
            exclude=self.options.exclude,
            merge_pooling=self.options.merge_pooling,
            solution=solution,
        )

    def batch_example(self) -> Tensor:
        """Return random images of the batch size that is measured."""
        return example_images((self.options.batch, *self.data.input_shape), seed=self.options.seed)


class Steps:
    """The steps of one job in one folder, a method each; their order is that of ``pipeline/compress.py``.

    Args:
        job: what is to be compressed.
        folder: where files go.
        progress: show bars on stderr.
    """

    def __init__(self, job: Job, folder: RunFolder, *, progress: bool) -> None:
        self.job, self.folder, self.progress = job, folder, progress

    @cached_property
    def latency(self) -> LatencyTable:
        """Table that the profile wrote."""
        return LatencyTable.read(self.folder.file("latency.csv"))

    @cached_property
    def importance_table(self) -> ImportanceTable:
        """Table that the importance step wrote."""
        return ImportanceTable.read(self.folder.file("importance.csv"))

    @cached_property
    def solution(self) -> Solution:
        """The plan that was taken."""
        return Solution.read(self.folder.file("solution.json"))

    @cached_property
    def merged(self) -> nn.Module:
        """The network in deploy form."""
        return load_form(self.folder.file("merged.safetensors"), self.job.model).module.eval()

    @cached_property
    def original_onnx(self) -> bytes:
        """The original as exported."""
        return self.folder.file("original.onnx").read_bytes()

    @property
    def original_int8_onnx(self) -> bytes:
        """The original quantised, as exported; in int8 alone."""
        return self.folder.file("original-int8.onnx").read_bytes()

    @cached_property
    def meter(self) -> BackendMeter:
        """Meter that measures plans."""
        job = self.job
        return BackendMeter(
            job.model, job.net, self.latency, job.backend, batch=job.options.batch, original_onnx=self.original_onnx
        )

    def trace(self) -> Traced:
        """Check what was traced, and export the original."""
        job = self.job
        job.data.preload()  # a broken image shows now, not after the profile
        self._check_trace()
        onnx_bytes = export_onnx(job.model, job.batch_example())
        self._check_onnx(onnx_bytes, job.model)
        write_bytes(self.folder.file("original.onnx"), onnx_bytes)
        self.folder.write_json("network.json", describe_network(job.net))
        return Traced(layers=len(job.net.layers), chains=len(job.net.chains), residuals=len(job.net.residuals))

    def _check_trace(self) -> None:
        """Refuse a graph, or a train form that changes nothing, that computes something else than the model."""
        model, net, images = self.job.model, self.job.net, self.job.images
        check_same_function(model, net.graph.on(model), images)
        unchanged = Solution(act_pos=net.original_act_pos, merge_pos=tuple(range(1, len(net.layers) + 1)))
        check_same_function(model, build_train_form(model, net, unchanged).eval(), images)

    def _check_onnx(self, onnx_bytes: bytes, module: nn.Module) -> None:
        """Refuse an ONNX file that computes something else than its module, on images like those of the data.

        Raises:
            ExportError: it does.
        """
        for images in batches_of(self.job.images, self.job.options.batch):
            check_onnx(onnx_bytes, module, images, MOST_DIFFERENCE)

    def profile(self) -> Profiled:
        """Measure every candidate."""
        job = self.job
        table = profile_network(
            job.model,
            job.net,
            job.backend,
            options=replace(
                job.options.profile, dtype=job.backend.precision, candidates=job.candidates, model_name=job.name
            ),
            progress=self.progress,
        )
        table.write(self.folder.file("latency.csv"))
        return Profiled(candidates=len(job.candidates), plans=len(plans_of(table)))

    def importance(self) -> Estimated:
        """Estimate what each segment costs in accuracy."""
        job, options = self.job, self.job.options
        # Here, not with the profile, so that another budget finds the profile done.
        check_reachable(job.net, self.latency, options.budget, self.meter, progress=self.progress)
        journal = self.folder.file("importance.journal")
        table = estimate_importance(
            job.model,
            job.net,
            job.data,
            options=replace(
                options.importance,
                refinement=Refinement(budgets_ms=self._near_the_budget()),
                model_name=job.name,
            ),
            latency=self.latency,
            journal_path=journal,
            progress=self.progress,
        )
        table.write(self.folder.file("importance.csv"))
        remove_journal(journal)
        return Estimated(entries=len(table.entries), left_out=len(table.provenance.left_out))

    def _near_the_budget(self) -> tuple[float, ...]:
        """Return latencies whose plans the budget loop may come to: predictions are some per cent off."""
        budget_ms = self.job.options.budget.in_ms(self.latency.original_ms)
        return tuple(share * budget_ms for share in _SHARES_OF_BUDGET)

    def solve_and_verify(self) -> Solved:
        """Find the best plan whose measured latency keeps the budget."""
        job, options = self.job, self.job.options
        of_plans = job.model, job.net, job.data, options
        with waiting("verify: the original's scores", enabled=self.progress):
            scores, finalists = whole_scores(*of_plans), finalist_scores(*of_plans, progress=self.progress)
        found = meet_budget(
            job.net,
            self.latency,
            self.importance_table,
            options.budget,
            self.meter,
            options=LoopOptions(alpha=options.alpha, margin=options.margin),
            scores=PlanScores(score_plan=scores, most_wholes=options.whole_plans, score_finalist=finalists),
            progress=self.progress,
        )
        solution = replace(
            found.solution,
            model=job.name,
            network_hash=job.net.hash,
            measured_ms=found.verification.measured_ms,
            budget_ms=found.verification.budget_ms,
        )
        solution.write(self.folder.file("solution.json"))
        found.frontier.write_csv(self.folder.file("frontier.csv"))
        outcome = Solved.of(
            found,
            score=None if scores is None else scores.score,
            finalist_steps=None if finalists is None else finalists.steps,
        )
        self.folder.write_json("verification.json", outcome.verification_json(found.verification.to_json()))
        return outcome

    def _train_form(self) -> fx.GraphModule:
        return build_train_form(self.job.model, self.job.net, self.solution)

    def finetune(self) -> Finetuned:
        """Train the network with its activations removed, the original as its teacher."""
        job, options = self.job, self.job.options
        student = self._train_form()
        checkpoint = self.folder.file("finetune.checkpoint")
        run = RunOptions(
            checkpoint_path=checkpoint, device=options.train_device, progress=self.progress, description="finetune"
        )
        report = finetune_network(student, job.data, options.finetune, teacher=job.model, run=run)
        save_form(
            student,
            self.folder.file("finetuned.safetensors"),
            kind="train",
            recipe=job.recipe(self.solution),
            facts={"batch_norm": FINETUNED, "finetune": report.as_dict()},
        )
        checkpoint.unlink(missing_ok=True)
        return Finetuned.of(report)

    def merge(self) -> Merged:
        """Merge, and compare the network that its file gives back with its train form."""
        if self.job.epochs:
            student = load_form(self.folder.file("finetuned.safetensors"), self.job.model).module
            batch_norm = FINETUNED
        else:
            student, batch_norm = self._recalibrated(), RECALIBRATED
        path = self.folder.file("merged.safetensors")
        save_form(
            merge_network(student.eval()),
            path,
            kind="deploy",
            recipe=self.job.recipe(self.solution),
            facts={"batch_norm": batch_norm if has_batch_norm(student) else NO_BATCH_NORM},
        )
        self.__dict__.pop("merged", None)
        difference = check_same(self.merged, student, self.job.images, "the merged network and its train form")
        return Merged(max_difference=difference)

    def _recalibrated(self) -> fx.GraphModule:
        """Without finetuning, BatchNorm statistics are measured again: what the importances stand for."""
        student = self._train_form().to(self.job.options.train_device)
        recalibrate_batch_norm(student, self.job.data, batch_size=self.job.options.batch_size)
        return student.to("cpu")

    def export(self) -> Exported:
        """Export the merged network, in int8 the original beside it."""
        job = self.job
        asked = job.options.formats
        formats = asked or FORMATS
        options = ExportOptions(
            skip_missing=asked is None,
            preprocessing=job.data.preprocessing,
            precision=job.backend.precision,  # of an engine; an ONNX file is float32, and its runtime goes lower
        )
        if job.options.is_int8:
            return export_int8(
                self.merged,
                self.original_onnx,
                self.folder.path,
                formats,
                images=list(batches_of(job.images, job.options.batch)),
                data=job.data,
                quantise=job.options.quantise,
                options=options,
            )
        report = export_network(
            self.merged, self.folder.path, formats, options=options, example_input=job.batch_example()
        )
        self._check_onnx(report.onnx_path.read_bytes(), self.merged)
        return Exported.of(report)

    def evaluate(self) -> Scored:
        """Score both networks on the test images."""
        job, device, test = self.job, self.job.options.train_device, self.job.data.test
        original, compressed = copy_module(job.model).to(device), self.merged.to(device)
        teacher = None if job.data.is_labelled else original
        as_given = NetworkScores.of(evaluate_network(original, test, teacher=teacher))
        merged = NetworkScores.of(evaluate_network(compressed, test, teacher=original))
        compressed.to("cpu")
        if job.options.is_int8:
            original.to("cpu")
            quantised, original_int8 = (
                NetworkScores.of(evaluate_network(OnnxModule(content), test, teacher=original))
                for content in (self.folder.file("model.onnx").read_bytes(), self.original_int8_onnx)
            )
            outcome = Scored(
                original=as_given, compressed=quantised, original_int8=original_int8, compressed_float32=merged
            )
        else:
            outcome = Scored(original=as_given, compressed=merged)
        self.folder.write_json("scores.json", outcome.to_json())
        return outcome

    def bench(self) -> Benched:
        """Measure the exported files against each other; a reading over the budget is repeated, longer."""
        options = self.job.options
        budget, others = options.budget, {}
        networks = {"original": self.original_onnx, "compressed": self.folder.file("model.onnx").read_bytes()}
        if options.is_int8:  # the first is what the others are relative to
            networks = {ORIGINAL_INT8: self.original_int8_onnx, **networks}
            others["original"] = options.open_backend("float32")
        for attempt in range(_MOST_BENCH_TRIES):
            report = benchmark_networks(
                networks,
                None,
                self.job.backend,
                others=others,
                target=0.005,
                cap_s=5.0 * 2**attempt,
                is_patient=attempt > 0,
            )
            within = budget.is_kept_by(judge(report, budget))
            if within:
                break
        self.folder.write_json("bench.json", {**report.to_json(), "is_within_budget": within})
        return Benched.of(report, is_within_budget=within, attempts=attempt + 1)
