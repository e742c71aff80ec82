"""What each step of a compression leaves in ``run.json``: one record per step, written and read here alone.

``run.json`` may be of an older version, or edited: what is read is checked field by field, and what an older version
did not write is unknown (None) or empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any, Self, TypeVar, cast

from annotated_types import Ge, Gt, Le, MinLen

from layerfold.errors import UsageError
from layerfold.export import ExportReport
from layerfold.files import Count, Finite, JsonObject, JsonValue, as_json, parse_json
from layerfold.finetune import EpochRow, FinetuneReport, Scores
from layerfold.pipeline.budget_loop import LoopResult, Round
from layerfold.profiler import BenchmarkReport

_Ms = Annotated[float, Gt(0), Le(1e9)]
_Share = Annotated[float, Ge(0), Le(100)]
_REMEDY = "start again in this folder with --overwrite"
_T = TypeVar("_T")


def copied(cls: type[_T], source: object, **others: Any) -> _T:
    """Return a record whose fields are those of the same name of another object, but for ``others``."""
    names = (each.name for each in fields(cast(Any, cls)) if each.name not in others)
    return cls(**{name: getattr(source, name) for name in names}, **others)


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """Outcome of a step; each step has a class of its own, whose fields are the names in the file."""

    def to_json(self) -> JsonObject:
        """Return what ``run.json`` holds of it."""
        return as_json(asdict(self))

    @classmethod
    def from_json(cls, content: Mapping[str, JsonValue], *, source: str) -> Self:
        """Check what ``run.json`` holds and return it.

        Args:
            content: as :meth:`to_json` gives it; further names are passed over.
            source: file and step, the head of the error line.

        Raises:
            UsageError: a field that is missing, of another type or out of its bounds; names it.
        """
        return parse_json(json.dumps(content), cls, source=source, remedy=_REMEDY)


@dataclass(frozen=True, kw_only=True)
class Traced(StepOutcome):
    """Outcome of the trace: how many layers, chains and residuals the network has."""

    layers: Count
    chains: Count
    residuals: Count


@dataclass(frozen=True, kw_only=True)
class Profiled(StepOutcome):
    """Outcome of the profile: how many candidates were measured, and whole networks timed."""

    candidates: Count
    plans: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Estimated(StepOutcome):
    """Outcome of the importance: how many entries the table has, and how many segments it leaves out on purpose."""

    entries: Count
    left_out: Count | None = None


@dataclass(frozen=True, kw_only=True)
class VerifiedRound:
    """One plan that was built and measured (:class:`layerfold.pipeline.budget_loop.Round`).

    Attributes:
        importance: of the plan, by the table.
        is_within: whether the measurement keeps the budget.
        The others are those of :class:`layerfold.profiler.Verification`.
    """

    predicted_ms: Finite
    importance: Finite | None
    is_within: bool
    measured_ms: _Ms
    low_ms: Finite
    high_ms: Finite
    original_ms: _Ms
    original_low_ms: Finite | None = None
    original_high_ms: Finite | None = None
    ratio: Annotated[float, Gt(0), Le(1e9)]
    ratio_low: Finite | None = None
    ratio_high: Finite | None = None
    budget_ms: Finite | None = None
    speedup: Finite | None = None
    is_within_budget: bool | None = None
    is_settled: bool | None = None
    provenance: JsonObject = field(default_factory=dict)
    predicted_low_ms: Finite | None = None
    predicted_high_ms: Finite | None = None
    contended: Count | None = None
    batch_norm: str | None = None
    prediction_error: Finite | None = None

    @classmethod
    def of(cls, turn: Round) -> VerifiedRound:
        """Return the record of a turn of the budget loop."""
        found = turn.verification
        return copied(
            cls,
            found,
            predicted_ms=turn.predicted_ms if found.predicted_ms is None else found.predicted_ms,
            importance=turn.solution.importance,
            is_within=turn.is_within,
            provenance=as_json(found.provenance),
        )


@dataclass(frozen=True, kw_only=True)
class WholePlans:
    """Plans that were scored as whole networks.

    Attributes:
        score: what they were scored by; None where none was.
        taken: scores of those taken, from the one of highest importance on; None for a network without finite answers.
        finalists: scores of those that a short finetuning decided between.
        finalist_steps: of each finetuning.
        chosen: index of the finalist that was taken.
    """

    score: str | None = None
    taken: list[Finite | None]
    finalists: list[Finite | None] = field(default_factory=list)
    finalist_steps: int | None = None
    chosen: int | None = None

    def to_json(self) -> JsonObject:
        """Return what files hold: of finalists only where there were some."""
        found = as_json(asdict(self))
        return found if self.finalists else {name: found[name] for name in ("score", "taken")}


@dataclass(frozen=True, kw_only=True)
class Solved(StepOutcome):
    """Outcome of solving and verifying.

    Attributes:
        rounds: every plan that was built and measured, in order.
        frontier: (predicted_ms, importance) of every Pareto-optimal plan, rising.
        wholes: plans scored as whole networks; None in a run of an older version.
    """

    rounds: Annotated[list[VerifiedRound], MinLen(1)]
    frontier: Annotated[list[tuple[Finite, Finite]], MinLen(1)]
    wholes: WholePlans | None = None

    @classmethod
    def of(cls, found: LoopResult, *, score: str | None, finalist_steps: int | None) -> Solved:
        """Return the record of a budget loop.

        Args:
            found: what it gave.
            score: what whole plans were scored by; None where none was.
            finalist_steps: of each finetuning that decided between some; None where none did.
        """
        wholes = WholePlans(score=score, taken=found.whole_scores)
        if found.finalists:
            wholes = WholePlans(
                score=score,
                taken=found.whole_scores,
                finalists=found.finalist_scores,
                finalist_steps=finalist_steps,
                chosen=found.chosen_finalist,
            )
        return cls(
            rounds=[VerifiedRound.of(each) for each in found.rounds],
            frontier=[(point.predicted_ms or 0.0, point.importance or 0.0) for point in found.frontier],
            wholes=wholes,
        )

    def to_json(self) -> JsonObject:
        """Return what ``run.json`` holds of it."""
        return {**StepOutcome.to_json(self), "wholes": None if self.wholes is None else self.wholes.to_json()}

    def verification_json(self, chosen: Mapping[str, JsonValue]) -> JsonObject:
        """Return what ``verification.json`` holds: the measurement of the plan that was chosen, and of every plan."""
        found = self.to_json()
        return {"chosen": chosen, "rounds": found["rounds"], "wholes": found["wholes"]}


@dataclass(frozen=True, kw_only=True)
class Finetuned(StepOutcome):
    """Outcome of the finetuning; its fields are of :class:`layerfold.finetune.FinetuneReport`, without weights."""

    history: list[EpochRow] = field(default_factory=list)
    best_epoch: int | None = None
    kept_epoch: int | None = None
    steps: Count | None = None
    resumed_from_step: Count | None = None
    seconds: Finite | None = None
    options: JsonObject = field(default_factory=dict)

    @classmethod
    def of(cls, report: FinetuneReport) -> Finetuned:
        """Return the record of a finetuning."""
        return copied(cls, report, history=list(report.history), options=as_json(report.options))


@dataclass(frozen=True, kw_only=True)
class Merged(StepOutcome):
    """Outcome of the merging: the largest difference from the train form, relative to its largest output."""

    max_difference: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class OnnxDifference:
    """The largest difference of the ONNX file from its module: in the outputs' unit, and relative to the largest."""

    max_abs: Finite | None = None
    max_rel: Finite


@dataclass(frozen=True, kw_only=True)
class Exported(StepOutcome):
    """Outcome of the export.

    Attributes:
        onnx_path: as it was written.
        check: of the ONNX file.
        engine: what the JSON file beside the engine holds; None where none was built.
        skipped: format -> why it was left out.
    """

    onnx_path: str = ""
    check: OnnxDifference
    engine: JsonObject | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, report: ExportReport) -> Exported:
        """Return the record of an export."""
        return cls(
            onnx_path=str(report.onnx_path),
            check=OnnxDifference(max_abs=report.check.max_abs, max_rel=report.check.max_rel),
            engine=None if report.engine is None else as_json(report.engine.to_json()),
            skipped=report.skipped,
        )


@dataclass(frozen=True, kw_only=True)
class NetworkScores:
    """Scores of one network on the test images; the fields are those of :class:`layerfold.finetune.Scores`."""

    accuracy_pct: _Share | None
    loss: float | None = None
    agreement_pct: _Share | None
    divergence: float | None = None
    num_images: Count | None = None

    @classmethod
    def of(cls, scores: Scores) -> NetworkScores:
        """Return the record of scores."""
        return copied(cls, scores)


@dataclass(frozen=True, kw_only=True)
class Scored(StepOutcome):
    """Outcome of the evaluation, which ``scores.json`` holds too: both networks on the test images."""

    original: NetworkScores
    compressed: NetworkScores


@dataclass(frozen=True, kw_only=True)
class BenchedNetwork:
    """Measurement of one network; its fields are of :class:`layerfold.profiler.NetworkLatency`, and its speed-up."""

    name: str
    median_ms: _Ms
    low_ms: Finite
    high_ms: Finite
    spread_ms: Finite | None = None
    ratio: Finite | None = None
    ratio_low: Finite | None = None
    ratio_high: Finite | None = None
    runs: Count | None = None
    is_settled: bool
    contended: Count | None = None
    speedup: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class _Conditions:
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    conditions: _Conditions = field(default_factory=_Conditions)


@dataclass(frozen=True, kw_only=True)
class _Conditioned:
    """Part of the last measurement's file: what it says of the machine meanwhile."""

    provenance: _Measured


@dataclass(frozen=True, kw_only=True)
class Benched(StepOutcome):
    """Outcome of the last measurement.

    Attributes:
        is_within_budget: whether the compressed network keeps the budget.
        attempts: measurements it took; each was longer than the one before.
        networks: among them ``original`` and ``compressed``.
        provenance: backend, versions, device, options, and the conditions of the machine.
    """

    is_within_budget: bool
    attempts: Annotated[int, Ge(1), Le(1000)]
    networks: Annotated[list[BenchedNetwork], MinLen(2)]
    provenance: JsonObject

    @classmethod
    def of(cls, report: BenchmarkReport, *, is_within_budget: bool, attempts: int) -> Benched:
        """Return the record of a measurement."""
        return cls(
            is_within_budget=is_within_budget,
            attempts=attempts,
            networks=[copied(BenchedNetwork, each) for each in report.networks],
            provenance=as_json(report.provenance),
        )

    @classmethod
    def from_json(cls, content: Mapping[str, JsonValue], *, source: str) -> Self:
        """Check what ``run.json`` holds and return it; see :meth:`StepOutcome.from_json`."""
        found = parse_json(json.dumps(content), cls, source=source, remedy=_REMEDY)
        parse_json(json.dumps(content), _Conditioned, source=source, remedy=_REMEDY)
        if not {"original", "compressed"} <= {each.name for each in found.networks}:
            raise UsageError(f"{source}.networks: expected original and compressed; {_REMEDY}")
        return found

    @property
    def original(self) -> BenchedNetwork:
        """The network as it was given."""
        return next(each for each in self.networks if each.name == "original")

    @property
    def compressed(self) -> BenchedNetwork:
        """The network that came out."""
        return next(each for each in self.networks if each.name == "compressed")

    @property
    def warnings(self) -> list[str]:
        """Warnings about the machine meanwhile, each in one sentence."""
        return parse_json(json.dumps(self.provenance), _Measured, source="provenance").conditions.warnings
