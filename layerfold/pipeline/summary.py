"""What a run shows at its end: the result table, the pictures and the report page."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from layerfold import __version__
from layerfold.data import ImageData
from layerfold.files import write_text
from layerfold.graph import Network, Segment
from layerfold.graph.description import shortcut_macs
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.outcomes import Benched, Exported, Scored, Solved, VerifiedRound, WholePlans
from layerfold.profiler.backends import BackendFacts
from layerfold.profiler.backends.base import USUAL_LAYOUT, USUAL_PRECISION
from layerfold.profiler.plans.fitted import beliefs_of
from layerfold.report import (
    MeasuredPoint,
    ReportData,
    ResultRow,
    StepTime,
    VerifyRound,
    frontier_png,
    merged_segments,
    network_svg,
    write_report,
)
from layerfold.report.latency_plots import points_of, prediction_png, time_png
from layerfold.solver import Solution
from layerfold.tables import ImportanceTable, LatencyTable

FILES = (
    ("network.json", "the traced network: layers, chains, residuals, barriers"),
    ("latency.csv", "latency of every candidate segment, ms; provenance beside it"),
    ("importance.csv", "importance of every segment worth merging; provenance beside it"),
    ("frontier.csv", "every Pareto-optimal plan"),
    ("solution.json", "the plan taken: act_pos, merge_pos, and kept_layers where layers are dropped"),
    ("verification.json", "every plan that was built and measured"),
    ("finetuned.safetensors", "weights in train form"),
    ("merged.safetensors", "weights in deploy form"),
    ("original.onnx", "the original network"),
    ("original-int8.onnx", "the original network quantised, which is what one has without merging"),
    ("model.onnx", "the compressed network"),
    ("model.engine", "the compressed network as a TensorRT engine"),
    ("scores.json", "accuracy before and after"),
    ("bench.json", "latency before and after"),
    ("frontier.png", "the frontier, the budget and what was measured"),
    ("time.png", "where the time goes before and after"),
    ("prediction.png", "whole networks, predicted against measured"),
    ("network.svg", "what was merged"),
    ("run.json", "settings and finished steps; what a resumed run reads"),
)


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """All that a finished compression left, which its summary shows.

    Attributes:
        out: the output folder.
        name: of the model, as the user called it.
        command: the command line, or empty.
        options: settled.
        data: the images.
        backend: what latency was measured with.
        net: the traced network.
        latency, importance: the tables.
        solution: the plan that was taken.
        num_params: parameters of the compressed network.
        steps: wall times, in order.
        solved, exported, scored, benched: what these steps gave.
    """

    out: Path
    name: str
    command: str
    options: CompressOptions
    data: ImageData
    backend: BackendFacts
    net: Network
    latency: LatencyTable
    importance: ImportanceTable
    solution: Solution
    num_params: int
    steps: tuple[StepTime, ...]
    solved: Solved
    exported: Exported
    scored: Scored
    benched: Benched


@dataclass(frozen=True, kw_only=True)
class _Clock:
    """One unit for all that a report shows: the machine's speed drifts, and each step measured at another moment.

    Every latency is shown as its share of the original's latency at that moment, in milliseconds of the last
    measurement.

    Attributes:
        original_ms: the original in the last measurement.
        table_ms: the original by the latency table.
        rounds_ms: the original as measured in each round of the budget loop, in order.
    """

    original_ms: float
    table_ms: float
    rounds_ms: tuple[float, ...]

    def shown(self, latency_ms: float, beside_ms: float) -> float:
        """Return a latency in the unit of the report; ``beside_ms`` is the original's at that moment."""
        return self.original_ms * latency_ms / beside_ms

    def predicted_in(self, index: int) -> float:
        """Return the original's latency that the prediction of a round stands on: as measured last before it."""
        return self.rounds_ms[index - 1] if index else self.table_ms


def write_summary(run: RunOutcome) -> ReportData:
    """Draw the pictures, write ``report.html`` and return what it shows."""
    svg = network_svg(run.net, run.solution, title=f"{run.name}: what was merged")
    write_text(run.out.joinpath("network.svg"), svg)
    clock = _clock(run)
    frontier_path = _draw_frontier(run, clock)
    rows = _rows(run, clock)
    report = ReportData(
        title=f"{run.name} compressed to {run.options.budget}",
        model=f"{run.name}, input {'x'.join(map(str, run.data.input_shape))}, batch {run.options.batch}",
        data=_describe_data(run.data),
        device=_measured_on(run.backend),
        command=run.command,
        budget_ms=_budget_ms(run, clock.original_ms),
        is_budget_met=None if run.options.fastest else run.benched.is_within_budget,
        verdict=_verdict(run, rows),
        rows=rows,
        rounds=tuple(_round(i, each, clock) for i, each in enumerate(run.solved.rounds)),
        segments=merged_segments(run.net, run.solution, run.latency, original_ms=clock.original_ms),
        steps=run.steps,
        network_svg=svg,
        frontier_path=frontier_path,
        pictures=tuple(_draw_latency(run)),
        files=tuple((name, what) for name, what in FILES if run.out.joinpath(name).exists()),
        provenance=_provenance(run),
        notes=_notes(run),
    )
    write_report(report, run.out.joinpath("report.html"))
    return report


def compressed_macs(net: Network, segments: list[Segment]) -> int:
    """Return the multiply-adds of the whole network with its chains merged into ``segments``."""
    chains = sum(layer.conv.macs(layer.input_shape) for layer in net.layers) + sum(map(shortcut_macs, net.residuals))
    return net.macs - chains + sum(segment.macs for segment in segments)


def _clock(run: RunOutcome) -> _Clock:
    return _Clock(
        original_ms=run.benched.reference.median_ms,
        table_ms=run.latency.original_ms,
        rounds_ms=tuple(each.original_ms for each in run.solved.rounds),
    )


def _predicted_ms(run: RunOutcome, clock: _Clock) -> float:
    """Return what was predicted for the plan that was taken."""
    predicted_ms, rounds = run.solution.predicted_ms or 0.0, run.solved.rounds
    index = next((i for i, each in enumerate(rounds) if each.predicted_ms == predicted_ms), len(rounds) - 1)
    return clock.shown(predicted_ms, clock.predicted_in(index))


def _rows(run: RunOutcome, clock: _Clock) -> tuple[ResultRow, ...]:
    """Return the original, in int8 the original quantised too, and what came out."""
    after = run.benched.compressed
    segments = run.net.segments_in(run.solution)
    originals = [(run.benched.original, run.scored.original)]
    if run.scored.original_int8 is not None:
        originals.append((run.benched.reference, run.scored.original_int8))
    before = [
        ResultRow(
            name=measured.name,
            accuracy_pct=scores.accuracy_pct,
            agreement_pct=scores.agreement_pct,
            latency_ms=measured.median_ms,
            low_ms=measured.low_ms,
            high_ms=measured.high_ms,
            num_layers=len(run.net.layers),
            num_params=run.net.num_params,
            macs=run.net.macs,
        )
        for measured, scores in originals
    ]
    compressed = ResultRow(
        name="compressed",
        accuracy_pct=run.scored.compressed.accuracy_pct,
        agreement_pct=run.scored.compressed.agreement_pct,
        latency_ms=after.median_ms,
        low_ms=after.low_ms,
        high_ms=after.high_ms,
        predicted_ms=_predicted_ms(run, clock),
        num_layers=sum(not segment.is_identity for segment in segments),
        num_params=run.num_params,
        macs=compressed_macs(run.net, segments),
    )
    return *before, compressed


def _verdict(run: RunOutcome, rows: tuple[ResultRow, ...]) -> str:
    before, after = run.benched.reference, run.benched.compressed
    is_int8 = before is not run.benched.original
    met = "Budget met" if run.benched.is_within_budget else "Budget NOT met"
    text = (
        f"{'Fastest plan' if run.options.fastest else met}: measured {after.median_ms:.4g} ms "
        f"(95 % interval {after.low_ms:.4g} to {after.high_ms:.4g}), "
        f"{before.median_ms / after.median_ms:.2f} times as fast as the {'quantised ' if is_int8 else ''}original's "
        f"{before.median_ms:.4g} ms"
    )
    if is_int8:
        in_float_ms = run.benched.original.median_ms
        text += f", {in_float_ms / after.median_ms:.2f} times as fast as its {in_float_ms:.4g} ms in float32"
    budget_ms = _budget_ms(run, before.median_ms)
    if budget_ms is not None:
        text += f"; at most {budget_ms:.4g} ms was asked"
    accuracies = [f"{row.accuracy_pct:.1f} %" for row in rows if row.accuracy_pct is not None]
    if len(accuracies) == len(rows):
        quantised = f", {accuracies[1]} quantised" if is_int8 else ""
        text += f". Accuracy {accuracies[0]} before{quantised}, {accuracies[-1]} after"
    elif rows[-1].agreement_pct is not None:
        text += f". It answers as the original does on {rows[-1].agreement_pct:.1f} % of the test images"
    return text + "."


def _budget_ms(run: RunOutcome, original_ms: float) -> float | None:
    return None if run.options.fastest else run.options.budget.in_ms(original_ms)


def _round(index: int, each: VerifiedRound, clock: _Clock) -> VerifyRound:
    beside_ms = each.original_ms
    return VerifyRound(
        number=index + 1,
        predicted_ms=clock.shown(each.predicted_ms, clock.predicted_in(index)),
        measured_ms=clock.shown(each.measured_ms, beside_ms),
        low_ms=clock.shown(each.low_ms, beside_ms),
        high_ms=clock.shown(each.high_ms, beside_ms),
        is_within=each.is_within,
        verdict=f"{1 / each.ratio:.2f}x, "
        + ("within the budget" if each.is_within else "over: refitted, solved again"),
    )


def _draw_latency(run: RunOutcome) -> Iterator[tuple[str, Path, str]]:
    """Draw where the time goes, and what the table's prediction is worth; yield them as the report wants them."""
    path = run.out.joinpath("time.png")
    before_ms, after_ms = run.benched.reference.median_ms, run.benched.compressed.median_ms
    time_png(run.latency, run.solution, path, measured_ms=(before_ms, after_ms), original_ms=before_ms)
    yield (
        "Where the time goes",
        path,
        "Each layer and each merged segment is as wide as it takes long, by the "
        "latency table; lines mark what was measured end to end.",
    )
    beliefs = beliefs_of(run.latency)
    if beliefs.measured:
        path = run.out.joinpath("prediction.png")
        ratios = [
            (found.ratio, found.deviation, plan.ratio, plan.deviation)
            for found, plan in zip(beliefs.held_out, beliefs.measured, strict=True)
        ]
        prediction_png(points_of(ratios, before_ms), path, label="each predicted from the others")
        yield (
            "What the prediction is worth",
            path,
            "Whole networks that were merged by random plans and timed, each "
            "predicted from all the others, with 95 % intervals.",
        )


def _draw_frontier(run: RunOutcome, clock: _Clock) -> Path:
    beside_ms = clock.rounds_ms[-1]  # the frontier is that of the last round's table
    points = [(clock.shown(latency_ms, beside_ms), importance) for latency_ms, importance in run.solved.frontier]
    rounds = [_round(index, each, clock) for index, each in enumerate(run.solved.rounds)]
    measured = [
        MeasuredPoint(
            predicted_ms=each.predicted_ms,
            measured_ms=each.measured_ms,
            low_ms=each.low_ms,
            high_ms=each.high_ms,
            importance=facts.importance or 0.0,
            is_within=None if run.options.fastest else each.is_within,
        )
        for each, facts in zip(rounds, run.solved.rounds, strict=True)
    ]
    return frontier_png(
        points,
        run.out.joinpath("frontier.png"),
        original=(clock.original_ms, 0.0),
        budget_ms=_budget_ms(run, clock.original_ms),
        chosen=(_predicted_ms(run, clock), run.solution.importance or 0.0),
        measured=measured,
        least=points[0],
        title=f"{run.name}: every plan that nothing beats",
        importance_label=f"importance ({_unit(run)}, higher is better)",
    )


def _unit(run: RunOutcome) -> str:
    return "nats" if run.options.importance_score in ("loss", "kl") else "points"


def _describe_data(data: ImageData) -> str:
    text = ", ".join(f"{count:,} {name}" for name, count in data.num_images.items())
    return f"{data.name}: {data.num_classes} classes; images: {text}"


def _measured_on(facts: BackendFacts) -> str:
    """Return device and backend in words, with the options that are not what every backend does anyway."""
    options = facts["options"]
    words = [str(facts["device"]), str(facts["backend"])]
    if "threads" in options:  # of a processor; on a GPU they say nothing
        words.append(f"{options['threads']} thread{'' if options['threads'] == 1 else 's'}")
    usual = {"precision": USUAL_PRECISION, "layout": USUAL_LAYOUT}
    return ", ".join([*words, *(str(options[name]) for name in usual if options.get(name, usual[name]) != usual[name])])


def _provenance(run: RunOutcome) -> tuple[tuple[str, str], ...]:
    facts = run.backend
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        ("device", str(facts["device"])),
        ("backend", f"{facts['backend']} ({versions})"),
        ("backend options", ", ".join(f"{name} {value}" for name, value in facts["options"].items())),
        ("trained and scored on", run.options.train_device),
        ("importance", f"{run.importance.provenance.options['method']}, {run.options.importance_score}"),
        ("network hash", run.net.hash),
        ("data fingerprint", run.data.fingerprint),
        ("seed", str(run.options.seed)),
        ("largest difference ONNX to module", f"{run.exported.check.max_rel:.2g} of its largest output"),
        ("layerfold", __version__),
        ("python", platform.python_version()),
    )


def _notes(run: RunOutcome) -> tuple[str, ...]:
    notes = []
    unsettled = [each.name for each in run.benched.networks if not each.is_settled]
    if unsettled:
        notes.append(f"The latency of {' and '.join(unsettled)} did not settle within its time; its interval is wide.")
    for when, warnings in (
        ("While the table was measured", run.latency.provenance.warnings),
        ("In the last measurement", run.benched.warnings),
    ):
        notes += [f"{when}, {warning}." for warning in warnings]
    if run.data.train is None:
        notes.append("The data has no train split: half of its images chose the plan, the other half were scored.")
    if run.benched.attempts > 1:
        notes.append(f"The last measurement was repeated {run.benched.attempts - 1} times, each longer.")
    total, method = run.solution.importance or 0.0, run.importance.provenance.options["method"]
    notes.append(f"By the importance table (method {method}) the plan changes the score by {total:+.2g} {_unit(run)}.")
    wholes = run.solved.wholes or WholePlans(taken=[])  # older runs have none
    if len(wholes.taken) > 1:
        first, last = wholes.taken[0], wholes.taken[-1] or 0.0
        lost = "left no finite answers" if first is None else f"changed the {wholes.score} by {-first:+.3g} nats"
        notes.append(
            "As whole networks, before any training, the plan with the highest sum of importances "
            f"{lost} and the best that keeps the budget changed it by {-last:+.3g}."
        )
    if finalists := wholes.finalists:
        losses = ", ".join("no finite loss" if each is None else f"{-each:.3g}" for each in finalists)
        notes.append(
            f"Finetuned for {wholes.finalist_steps} steps each, {len(finalists)} plans on the way from one "
            f"to the other came to losses of {losses} on the holdout; number {(wholes.chosen or 0) + 1} was "
            "taken."
        )
    notes += _notes_on_int8(run)
    if not run.options.finetune_epochs:
        notes.append("Nothing was finetuned: BatchNorm statistics were measured again, weights are the original's.")
    return tuple(notes)


def _notes_on_int8(run: RunOutcome) -> Iterator[str]:
    """Yield what quantising did, where it was done."""
    found = run.exported.quantised
    if found is None:
        return
    helped = [
        *([", channels evened out"] if found.equalised_pairs else []),
        *([", biases corrected"] if found.is_bias_corrected else []),
    ]
    yield (
        f"Quantised after training, calibrated on {found.num_images} images{''.join(helped)}: outputs differ from "
        f"float32 by {100 * found.relative_error:.1f} % of their size."
    )
    before, after = run.scored.compressed_float32, run.scored.compressed
    if before is not None and before.accuracy_pct is not None and after.accuracy_pct is not None:
        yield (
            f"In float32 the compressed network has an accuracy of {before.accuracy_pct:.1f} %, and of "
            f"{after.accuracy_pct:.1f} % in int8."
        )
    yield "Importances were estimated in float32."
    before_ms, in_float_ms = run.benched.reference.median_ms, run.benched.original.median_ms
    if before_ms > in_float_ms:
        yield (
            f"On this machine the original is slower in int8, at {before_ms:.4g} ms, than in float32, at "
            f"{in_float_ms:.4g} ms: the same budget may be met in float32 with less lost."
        )
