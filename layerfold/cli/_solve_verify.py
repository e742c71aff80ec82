"""``layerfold solve --verify MODEL``: the answer is built and measured until it keeps the budget."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from layerfold.budget import Budget
from layerfold.cli._networks import add_trace_arguments, check_precision, check_table, has_random_weights, trace_of
from layerfold.cli._options import CLASSES, THREADS, open_backend, whole
from layerfold.cli._output import show, show_json
from layerfold.cli._quantities import parse_margin
from layerfold.cli._sources import (
    add_data_arguments,
    add_plan_scores_arguments,
    add_weights_arguments,
    load_model_of,
    open_data_of,
    parse_shape,
)
from layerfold.cli._text import BATCH_NORM_TEXTS, facts
from layerfold.errors import UsageError
from layerfold.options import FinetuneOptions

if TYPE_CHECKING:
    from layerfold.graph import Network
    from layerfold.importance import FinalistScores, WholeScores
    from layerfold.models import LoadedModel
    from layerfold.pipeline.budget_loop import LoopResult
    from layerfold.solver import Frontier, Limits, Solution
    from layerfold.solver.budgets import BudgetOf
    from layerfold.tables import ImportanceTable, LatencyTable


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--verify`` and what it needs to build and measure networks."""
    add_trace_arguments(parser)
    group = parser.add_argument_group("verification", "measure the answer, and solve again until it keeps the budget")
    group.add_argument(
        "--verify",
        dest="model",
        metavar="MODEL",
        help="timm:NAME, torchvision:NAME or path/to/file.py:factory; the table's own network",
    )
    add_weights_arguments(group, "its weights (default: random; latency is the same)")
    group.add_argument("--num-classes", type=whole(1, CLASSES), metavar="N", help="outputs of the classifier")
    group.add_argument("--input", type=parse_shape, metavar="CxHxW", help="input shape (default: the latency table's)")
    group.add_argument("--backend", metavar="NAME", help="what measures (default: the latency table's backend)")
    group.add_argument("--device", metavar="NAME", help="a device of that backend (default: its first)")
    group.add_argument(
        "--threads", type=whole(1, THREADS), metavar="N", help="worker threads on a CPU (default: the table's)"
    )
    group.add_argument("--precision", metavar="NAME", help="of weights and feature maps (default: the table's)")
    group.add_argument("--layout", metavar="NAME", help="of feature maps (default: the table's)")
    group.add_argument(
        "--backend-option", action="append", default=[], metavar="NAME=VALUE", help="as for `layerfold profile`"
    )
    group.add_argument(
        "--margin",
        type=parse_margin,
        default="2",
        metavar="PCT",
        help="percent of the budget left free while a faster plan exists (default: %(default)s)",
    )
    group.add_argument(
        "--importance-images",
        type=whole(1),
        metavar="N",
        help="with --data, holdout images that a plan's whole network is scored on (default: 1000)",
    )
    add_plan_scores_arguments(group, default_steps="0")
    add_data_arguments(parser, required=False, trains=False)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One solution that is wanted: within a budget, by a speed-up, or, with neither, the knee of the frontier."""

    budget_ms: float | tuple[float, ...] | None = None
    speedup: float | None = None

    @property
    def is_knee(self) -> bool:
        """Whether it is the knee."""
        return self.budget_ms is None and self.speedup is None

    def of(self, frontier: Frontier, budget_of: BudgetOf) -> Solution:
        """Return it; see :meth:`Frontier.at`."""
        if self.is_knee:
            return frontier.knee()
        return frontier.at(budget_ms=self.budget_ms, speedup=self.speedup, budget_of=budget_of)

    def index_of(self, frontier: Frontier, budget_of: BudgetOf) -> int:
        """Return its place on the frontier."""
        if self.is_knee:
            return frontier.knee_index()
        return frontier.index_at(budget_ms=self.budget_ms, speedup=self.speedup, budget_of=budget_of)

    def in_ms(self, latencies: Sequence[LatencyTable], budget_of: BudgetOf) -> list[float]:
        """Return the end-to-end budget on each device."""
        from layerfold.solver.budgets import end_to_end_budgets

        return end_to_end_budgets(latencies, budget_ms=self.budget_ms, speedup=self.speedup, budget_of=budget_of)


def meet_budget_of(
    args: argparse.Namespace,
    asked: list[Asked],
    latencies: list[LatencyTable],
    importance: ImportanceTable,
    *,
    alpha: float,
    limits: Limits,
) -> LoopResult:
    """Run the closed loop for the one budget that was asked for.

    Raises:
        UsageError: several tables or budgets, or an option that only a prediction has.
        InfeasibleBudgetError: nothing meets the budget; names what can be met.
        DataError: images or labels that cannot be used.
    """
    budget_ms = asked[0].budget_ms
    if len(latencies) != 1 or len(asked) != 1 or asked[0].is_knee or isinstance(budget_ms, tuple):
        raise UsageError("--verify: give one --latency and one --budget or --speedup")
    for name, value in (("--risk", args.risk), ("--alternatives", args.alternatives)):
        if value is not None:
            raise UsageError(f"{name} {value}: speaks of predictions; --verify measures instead, leave it out")
    if args.budget_of != "end-to-end":
        raise UsageError(f"--budget-of {args.budget_of}: --verify measures end to end; leave it out")
    for name, value in (("--importance-images", args.importance_images), ("--finalist-steps", args.finalist_steps)):
        if args.data is None and value:
            raise UsageError(f"{name} {value}: are of --data; give that, or leave it out")
    if args.finalist_steps and not args.whole_plans:
        raise UsageError(
            f"--finalist-steps {args.finalist_steps}: choose among plans that --whole-plans led to; leave "
            "one of the two out"
        )
    if args.data is not None and has_random_weights(args):
        raise UsageError(
            f"--data {args.data}: plans are scored on it, and random weights have no score to lose; give "
            "--weights, or leave --data out"
        )
    table = latencies[0]
    provenance = table.provenance
    if args.input is None and len(provenance.input_shape) >= 3:
        args.input = tuple(provenance.input_shape[-3:])
    args.backend = args.backend or provenance.backend or "onnxruntime"
    for name in ("threads", "precision", "layout"):
        if getattr(args, name) is None:
            setattr(args, name, provenance.backend_options.get(name))
    backend = open_backend(args)  # what is missing shows before torch is loaded
    check_precision(table, table.source, backend)
    from layerfold.pipeline.backend_meter import BackendMeter
    from layerfold.pipeline.budget_loop import meet_budget

    net = trace_of(args, loaded := load_model_of(args))
    check_table(net, table, table.source)
    score, finalists = _scores_of_plans(args, loaded, net)
    meter = BackendMeter(loaded.module, net, table, backend, batch=provenance.batch or 1)
    return meet_budget(
        net,
        table,
        importance,
        Budget(budget_ms=budget_ms, speedup=asked[0].speedup),
        meter,
        alpha=alpha,
        normalise=args.normalise,
        limits=limits,
        margin=args.margin / 100,
        score_plan=score,
        most_wholes=args.whole_plans,
        score_finalist=finalists,
        progress=not args.json,
    )


def _scores_of_plans(
    args: argparse.Namespace, loaded: LoadedModel, net: Network
) -> tuple[WholeScores | None, FinalistScores | None]:
    """Return what scores plans before any training and after a short one, each None where it is not to."""
    if args.data is None or not args.whole_plans:
        return None, None
    from layerfold.importance import FinalistScores, WholeScores

    data, images = open_data_of(args, loaded), args.importance_images
    finalists = None
    if args.finalist_steps:
        options = FinetuneOptions(steps=args.finalist_steps)
        finalists = FinalistScores(loaded.module, net, data, options, holdout_images=images, progress=not args.json)
    return WholeScores(loaded.module, net, data, holdout_images=images), finalists


def verified_solution(found: LoopResult) -> Solution:
    """Return the solution with what was measured."""
    return replace(
        found.solution,
        measured_ms=found.verification.measured_ms,
        budget_ms=found.verification.budget_ms,
        network_hash=found.latency.provenance.network_hash,
        model=found.latency.provenance.model,
    )


def print_verified(args: argparse.Namespace, found: LoopResult) -> None:
    """Print what was measured."""
    verification = found.verification
    if args.json:
        show_json(
            {
                "original_ms": verification.original_ms,
                "points": len(found.frontier),
                "solutions": [verified_solution(found).to_json()],
                "verification": verification.to_json(),
                "rounds": [each.verification.to_json() for each in found.rounds],
                "trials": len(found.trials),
                "wholes": found.whole_scores,
                "finalists": found.finalist_scores,
                "chosen_finalist": found.chosen_finalist,
            }
        )
        return
    solution = found.solution
    used = 100 * verification.measured_ms / verification.budget_ms if verification.budget_ms else 0.0
    show(
        facts(
            [
                ("original", f"{verification.original_ms:.4g} ms"),
                (
                    "measured",
                    f"{verification.measured_ms:.4g} ms (95 % {verification.low_ms:.4g} to "
                    f"{verification.high_ms:.4g}), {1 / verification.ratio:.3f}x as fast",
                ),
                ("predicted", f"{solution.predicted_ms or 0.0:.4g} ms"),
                ("budget", f"{verification.budget_ms:.4g} ms, met; {used:.0f} % used"),
                ("BatchNorm", BATCH_NORM_TEXTS.get(verification.batch_norm or "")),
                ("importance", f"{solution.importance:.6g}"),
                ("as a whole", _wholes_text(found)),
                ("finalists", _finalists_text(found)),
                ("tried", f"{len(found.trials)} plans timed, {len(found.rounds)} built and verified"),
                ("act_pos", ",".join(map(str, solution.act_pos)) or "none"),
                ("merge_pos", ",".join(map(str, solution.merge_pos))),
                ("kept_layers", None if solution.kept_layers is None else ",".join(map(str, solution.kept_layers))),
            ]
        )
    )
    print("layerfold: the budget is kept by measurement, upper end of the interval included", file=sys.stderr)


def _wholes_text(found: LoopResult) -> str | None:
    if not found.wholes:
        return None

    def lost(score: float | None) -> str:
        return "lost all" if score is None else f"{score:+.4g} nats"

    scores = found.whole_scores
    text = f"{lost(scores[found.chosen_whole])} before any training"
    return text + (f"; the plan of highest importance {lost(scores[0])}" if found.chosen_whole else "")


def _finalists_text(found: LoopResult) -> str | None:
    if not found.finalists:
        return None
    losses = ["no finite loss" if score is None else f"{-score:.4g}" for score in found.finalist_scores]
    return f"losses after a short finetuning {', '.join(losses)}: number {(found.chosen_finalist or 0) + 1} was taken"
