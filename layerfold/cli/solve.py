"""``layerfold solve``: from tables to solutions, for one budget or many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._options import add_budget_arguments, add_command, check_named
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import PICTURES, Output, check_outputs
from layerfold.cli._quantities import parse_alpha, parse_number, parse_positions, parse_whole
from layerfold.cli._solve_verify import Asked, add_verify_arguments, meet_budget_of, print_verified, verified_solution
from layerfold.errors import UsageError
from layerfold.files import JsonObject

if TYPE_CHECKING:
    from layerfold.solver import Frontier, Limits, Solution
    from layerfold.tables import ImportanceTable, LatencyTable


_MOST_ALTERNATIVES = 100


def _number(flag: str, least: float, most: float, example: str) -> Callable[[str], float]:
    return partial(parse_number, argument=flag, least=least, most=most, example=example)


def _whole(flag: str, least: int, most: int = 10**9) -> Callable[[str], int]:
    return partial(parse_whole, argument=flag, least=least, most=most)


def _positions(flag: str) -> Callable[[str], frozenset[int]]:
    return partial(parse_positions, argument=flag)


def add_parser(subparsers: Any) -> None:
    """Add ``solve`` to the command line."""
    parser = add_command(
        subparsers,
        "solve",
        "choose what to merge from a latency and an importance table",
        "Choose what to merge: the best importance within a latency budget, proven optimal. One solve "
        "answers every budget. Results go to stdout.",
        "  layerfold solve --latency latency.csv --importance imp.csv --budget 25.0 -o solution.json\n"
        "  layerfold solve --latency latency.csv --importance imp.csv --speedup 1.5 --plot frontier.png --explain\n"
        "  layerfold solve --latency latency.csv --importance imp.csv --speedup 1.4 --verify timm:mobilenetv2_100\n"
        "  layerfold solve --latency phone.csv --budget 4ms --latency server.csv --budget 900us --importance imp.csv",
    )
    tables = parser.add_argument_group("tables")
    tables.add_argument(
        "--latency",
        "--time-path",
        action="append",
        required=True,
        metavar="CSV",
        help="latency table; give it again for each further device, each with a budget of its own",
    )
    tables.add_argument("--importance", "--imp-path", required=True, metavar="CSV", help="importance table")
    budget = parser.add_argument_group("budget")
    add_budget_arguments(
        budget,
        "latency budget, for example 25.0, 4.5ms or 800us; several give several solutions",
        "original latency / budget",
        action="append",
        default=[],
    )
    budget.add_argument("--knee", action="store_true", help="the point where more latency stops paying")
    budget.add_argument(
        "--budget-of",
        choices=("end-to-end", "segments"),
        default="end-to-end",
        help="what a budget counts: everything, or the bare sum of entries (default: %(default)s)",
    )
    budget.add_argument(
        "--risk",
        type=_number("--risk", 1e-12, 0.5, "0.05"),
        metavar="P",
        help="stay within the budget with probability 1 - P, from the entries' spreads (0.05)",
    )
    rules = parser.add_argument_group("what counts and what is allowed")
    rules.add_argument(
        "--alpha", type=parse_alpha, default="0", metavar="A", help="weight of the mean importance taken off (0)"
    )
    rules.add_argument(
        "--normalise",
        choices=("single", "default", "all"),
        default="single",
        help="entries that mean goes over: single layers, active on both sides, all",
    )
    rules.add_argument(
        "--max-params",
        type=_number("--max-params", 0.0, 1e18, "1e6"),
        metavar="N",
        help="most parameters of the merged convs",
    )
    rules.add_argument(
        "--max-macs",
        type=_number("--max-macs", 0.0, 1e18, "1e6"),
        metavar="N",
        help="most multiply-adds of the merged convs, one image",
    )
    rules.add_argument(
        "--max-merged", type=_whole("--max-merged", 0), metavar="N", help="most segments of more than one layer"
    )
    rules.add_argument(
        "--keep-act",
        type=_positions("--keep-act"),
        default=frozenset(),
        metavar="POS",
        help="positions whose activation stays, for example 3,7,12-15",
    )
    rules.add_argument(
        "--never-merge",
        type=_positions("--never-merge"),
        default=frozenset(),
        metavar="LAYERS",
        help="layers that stay convs of their own",
    )
    rules.add_argument(
        "--max-kernel", type=_whole("--max-kernel", 1), metavar="K", help="largest kernel of a merged segment"
    )
    rules.add_argument(
        "--epsilon",
        type=_number("--epsilon", 0.0, 1.0, "1e-4"),
        default="0",
        metavar="E",
        help="part of the span of importance that an answer may miss by, for huge tables (0: exact)",
    )
    rules.add_argument(
        "--max-labels",
        type=_whole("--max-labels", 16, 1_000_000),
        default=20_000,
        metavar="N",
        help="labels per state before a large frontier is thinned (default: 20000)",
    )
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", metavar="JSON", help="solution file; several solutions get a number each")
    out.add_argument("--pth", metavar="PTH", help="also as a published checkpoint.pth (needs torch)")
    out.add_argument("--frontier", metavar="FILE", help="every Pareto-optimal point, as .csv or .json")
    out.add_argument("--plot", metavar="PNG", help="the frontier with the original, the budget and the chosen point")
    out.add_argument(
        "--alternatives",
        type=_whole("--alternatives", 1, _MOST_ALTERNATIVES),
        metavar="K",
        help="the K best solutions that keep different activations",
    )
    out.add_argument("--explain", action="store_true", help="what was merged, what each saved and cost, what is next")
    out.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    out.add_argument("--json", action="store_true", help="print JSON")
    add_verify_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Solve, then write files, then print; nothing is written unless all budgets have an answer."""
    from layerfold.solver import explain_point, solve_alternatives, solve_frontier
    from layerfold.tables import ImportanceTable, LatencyTable

    asked = _asked(args)
    limits = _limits(args)
    alpha, risk, alternatives = args.alpha, args.risk, args.alternatives
    _check_outputs(args, len(asked))
    latencies = [LatencyTable.read(path) for path in args.latency]
    importance = ImportanceTable.read(args.importance)

    for name, value in (("--data", args.data), ("--finalist-steps", args.finalist_steps)):
        if args.model is None and value:
            raise UsageError(f"{name} {value}: plans are scored with --verify MODEL; give that, or leave it out")
    if args.model is not None:
        found = meet_budget_of(args, asked, latencies, importance, alpha=alpha, limits=limits)
        _write(args, found.frontier, [verified_solution(found)])
        print_verified(args, found)
        return 0

    # Several devices: their budgets are known, so that the frontier need hold only what keeps to them.
    known = None
    if len(latencies) > 1 and asked[0].budget_ms is not None:
        known = asked[0].in_ms(latencies, args.budget_of)
    frontier = solve_frontier(
        latencies,
        importance,
        alpha,
        args.normalise,
        limits=limits,
        risk=risk,
        budgets_ms=known,
        epsilon=args.epsilon,
        max_labels=args.max_labels,
    )
    points = [each.index_of(frontier, args.budget_of) for each in asked]
    solutions = [
        frontier[point] if each.is_knee else each.of(frontier, args.budget_of)
        for each, point in zip(asked, points, strict=True)
    ]
    if alternatives:
        if len(solutions) != 1 or asked[0].is_knee:
            raise UsageError("--alternatives: give one --budget or --speedup")
        solutions = solve_alternatives(
            latencies,
            importance,
            count=alternatives,
            alpha=alpha,
            normalise=args.normalise,
            limits=limits,
            risk=risk,
            budgets_ms=asked[0].in_ms(latencies, args.budget_of),
        )
    _write(args, frontier, solutions)
    price = _price_of_risk(args, asked, latencies, importance, alpha, limits, solutions) if risk is not None else []
    explanations = [explain_point(frontier, point) for point in points] if args.explain else []
    if args.json:
        show_json(
            {
                "original_ms": frontier.original_ms,
                "points": len(frontier),
                "solutions": [solution.to_json() for solution in solutions],
                **({"without_risk": [_worth(each) for each in price]} if price else {}),
                **({"explanations": [each.to_json() for each in explanations]} if explanations else {}),
            }
        )
        return 0
    show(_table(frontier, solutions))
    for solution, without in zip(solutions, price, strict=False):
        cost = (without.importance or 0.0) - (solution.importance or 0.0)
        show(
            f"risk {risk:g}: costs {cost:.4g} points against the same budget without it "
            f"(importance {without.importance:.6g}, predicted {without.predicted_ms:.6g} ms)"
        )
    for explanation in explanations:
        show(f"\nat {explanation.solution.predicted_ms:.6g} ms:")
        show("\n".join(explanation.lines()))
    return 0


def _asked(args: argparse.Namespace) -> list[Asked]:
    """Return what :meth:`Frontier.at` is asked, once for each solution wanted."""
    budgets, speedups = args.budget, args.speedup
    devices = len(args.latency)
    if devices > 1 and budgets and len(budgets) != devices:
        raise UsageError(f"--budget: given {len(budgets)} times for {devices} tables, expected one for each --latency")
    found: list[Asked] = []
    if devices > 1 and budgets:
        found.append(Asked(budget_ms=tuple(budgets)))
    else:
        found += [Asked(budget_ms=budget) for budget in budgets]
    found += [Asked(speedup=speedup) for speedup in speedups]
    if args.knee:
        found.append(Asked())
    if not found:
        raise UsageError("no budget: give --budget, --speedup or --knee, for example --budget 4.5ms")
    return found


def _limits(args: argparse.Namespace) -> Limits:
    from layerfold.solver import Limits

    return Limits(
        max_params=args.max_params,
        max_macs=args.max_macs,
        max_merged=args.max_merged,
        keep_activations=args.keep_act,
        never_merge=args.never_merge,
        max_kernel=args.max_kernel,
    )


def _check_outputs(args: argparse.Namespace, count: int) -> None:
    """Refuse output files that cannot be written, or must not, before any time is spent."""
    named = [(flag, path) for flag, path in (("-o", args.output), ("--pth", args.pth)) if path is not None]
    for flag, path in named:
        check_named(path, flag)
    # Of K alternatives there may be fewer, and one alone has no number.
    numbers = [(1, 1)] if not args.alternatives else [(1, 1), *((index + 1, 2) for index in range(args.alternatives))]
    if count > 1:
        numbers = [(index + 1, count) for index in range(count)]
    check_outputs(
        args,
        *(Output(flag=flag, path=_numbered(path, *number)) for flag, path in named for number in numbers),
        Output(flag="--frontier", path=args.frontier, suffixes=(".csv", ".json")),
        Output(flag="--plot", path=args.plot, suffixes=PICTURES),
    )


def _write(args: argparse.Namespace, frontier: Frontier, solutions: list[Solution]) -> None:
    for index, solution in enumerate(solutions, start=1):
        if args.output is not None:
            solution.write(_numbered(args.output, index, len(solutions)))
        if args.pth is not None:
            solution.write_checkpoint(_numbered(args.pth, index, len(solutions)))
    if args.frontier is not None:
        write = frontier.write_csv if args.frontier.endswith(".csv") else frontier.write_json
        write(args.frontier)
    if args.plot is not None:
        frontier.plot(args.plot, budget_ms=solutions[0].budget_ms, chosen=solutions[0])
    for path in (args.output, args.pth, args.frontier, args.plot):
        if path is not None:
            print(f"wrote {path}", file=sys.stderr)


def _numbered(path: str, index: int, number: int) -> Path:
    """Return ``name.json`` for one solution, ``name-1.json``, ... for several."""
    plain = Path(path)
    return plain if number == 1 or not plain.name else plain.with_name(f"{plain.stem}-{index}{plain.suffix}")


def _price_of_risk(
    args: argparse.Namespace,
    asked: list[Asked],
    latencies: list[LatencyTable],
    importance: ImportanceTable,
    alpha: float,
    limits: Limits,
    solutions: list[Solution],
) -> list[Solution]:
    """Return the solutions that the same budgets allow when spreads do not count."""
    from layerfold.solver import solve_frontier

    plain = solve_frontier(latencies, importance, alpha, args.normalise, limits=limits)
    return [each.of(plain, args.budget_of) for each in asked[: len(solutions)]]


def _worth(solution: Solution) -> JsonObject:
    return {"predicted_ms": solution.predicted_ms, "importance": solution.importance}


def _table(frontier: Frontier, solutions: list[Solution]) -> str:
    from layerfold.tables.kernel import IDENTITY

    lines = [
        f"original {frontier.original_ms:.6g} ms; {len(frontier)} Pareto-optimal points from {frontier.least_ms:.6g} ms"
    ]
    for solution in solutions:
        predicted = solution.predicted_ms or 0.0
        head = "" if solution.budget_ms is None else f"budget {solution.budget_ms:.6g} ms: "
        speedup = f"{frontier.original_ms / predicted:.3f}x" if predicted else "nothing is left"
        convs = sum(each.kernel != IDENTITY for each in solution.segments)
        proof = "optimal" if not solution.gap else f"within {solution.gap:.3g} points of optimal"
        further = "".join(f", {name} {value:.6g}" for name, value in solution.costs.items())
        lines += [
            f"{head}predicted {predicted:.6g} ms ({speedup}), importance {solution.importance:.6g}, {convs} convs, "
            f"{proof}{further}",
            f"  act_pos    {','.join(map(str, solution.act_pos)) or 'none'}",
            f"  merge_pos  {','.join(map(str, solution.merge_pos))}",
        ]
        if solution.kept_layers is not None:
            lines.append(f"  kept_layers {','.join(map(str, solution.kept_layers))}")
    return "\n".join(lines)
