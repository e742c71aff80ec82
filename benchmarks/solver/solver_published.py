"""Compare with the published tables and the published algorithm.

    python benchmarks/solver/solver_published.py [--seeds 200]

Stage 1 against the published T_opt; then, on random importances, the importance reached and the budgets kept by
this solver and by the published algorithm (its independent implementation in tests/oracles), and the time of all
budgets here against one budget there, in the same process. Ends 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import shared_path, write_record

TABLES = {"mbv2_1.0": "fish_gpu1_1228", "vgg19_no_trt": "fish_gpu1_0317"}
EMPTY_SLOTS = {"mbv2_1.0": frozenset(range(2, 51, 3)), "vgg19_no_trt": frozenset[int]()}
PRECISION = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="random importance tables per network (%(default)s)")
    parser.add_argument("--budgets", type=int, default=20, help="budgets per seed (%(default)s)")
    parser.add_argument(
        "--precision",
        type=int,
        default=20,
        help="steps a millisecond of the published algorithm "
        "on the MobileNetV2 table (%(default)s); a fifth on VGG19, whose latencies are longer",
    )
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    results: dict[str, Any] = {"t_opt": {name: compare_t_opt(name) for name in TABLES}}
    broken = any(each["rows_that_differ"] for each in results["t_opt"].values())
    results["speed"] = {
        f"{name}, {'one entry a segment' if plain else 'with empty slots filled or not'}": compare_speed(name, plain)
        for name in TABLES
        for plain in (True, False)
    }
    results["answers"] = {}
    for name in TABLES:
        precision = args.precision if name == "mbv2_1.0" else max(1, args.precision // 5)
        work = partial(compare_answers, name, budgets=args.budgets, precision=precision)
        with ProcessPoolExecutor(args.workers) as pool:
            rows = [row for rows in pool.map(work, range(args.seeds), chunksize=2) for row in rows]
        summary = summarise(rows)
        results["answers"][name] = summary
        broken |= bool(summary["ours_over_budget"] or summary["ours_worse_than_published_within_budget"])
    broken |= results["speed"]["mbv2_1.0, one entry a segment"]["ratio_as_written"] < 1000
    write_record("solver_published", results, vars(args))
    return int(broken)


def read_latency(name: str, prefix: str = "time") -> Any:
    from layerfold.tables import LatencyTable

    return LatencyTable.read(shared_path() / "seed_tables" / name / f"{prefix}_{TABLES[name]}.csv")


def compare_t_opt(name: str) -> dict[str, Any]:
    """Compare every row's latency (to the 15 digits that the file has) and breaks."""
    from layerfold.solver import compute_optimal_latency

    ours, published = compute_optimal_latency(read_latency(name)), read_latency(name, "opt_time")
    differ = [
        (mine.start, mine.end)
        for mine, theirs in zip(ours.entries, published.entries, strict=True)
        if (mine.start, mine.end, mine.breaks) != (theirs.start, theirs.end, theirs.breaks)
        or f"{mine.latency_ms:.14g}" != f"{theirs.latency_ms:.14g}"
    ]
    return {"rows": len(ours), "rows_that_differ": len(differ)}


def random_importance(name: str, seed: int, plain: bool = False) -> Any:
    """Return an importance table of the published segments: keeping costs little, merging more the longer it is."""
    from layerfold.tables import ImportanceEntry, ImportanceTable

    latency, rng = read_latency(name), random.Random(seed)
    ((first, last),) = latency.chains
    empty = frozenset[int]() if plain else EMPTY_SLOTS[name]

    def states(position: int) -> tuple[int, ...]:
        if position in (first, last):
            return (0 if position == last and position in empty else 1,)
        return (0, 1) if position in empty else (1,)

    return ImportanceTable(
        [
            ImportanceEntry(
                start=e.start,
                end=e.end,
                start_act=a,
                end_act=b,
                importance=-rng.gammavariate(1.0, 0.4) * (e.end - e.start - 0.95) ** rng.uniform(0.5, 1.5),
            )
            for e in latency.entries
            for a in states(e.start)
            for b in states(e.end)
        ]
    )


def compare_answers(name: str, seed: int, *, budgets: int, precision: int) -> list[dict[str, float]]:
    """Return one row per budget: what either solver reaches."""
    from layerfold.errors import InfeasibleBudgetError
    from layerfold.solver import Limits, solve_frontier
    from tests.oracles.published import fill_table

    latency, importance = read_latency(name), random_importance(name, seed)
    # The published algorithm removes activations where merging stops all the same.
    frontier = solve_frontier(latency, importance, limits=Limits(allow_bare_stops=True))
    ((_, num_layers),) = latency.chains
    times = {(e.start, e.end): e.latency_ms for e in latency.entries}
    gains = {e.key: e.importance for e in importance.entries}
    rng = random.Random(-seed - 1)
    rows = []
    least_ms, most_ms = 0.97 * frontier.least_ms, 1.05 * float(frontier.latencies_ms[-1, 0])
    table = fill_table(times, gains, num_layers, most_ms, precision)
    for _ in range(budgets):
        budget_ms = rng.uniform(least_ms, most_ms)
        try:
            ours = frontier.at(budget_ms=budget_ms)
        except InfeasibleBudgetError:
            ours = None
        theirs = table.at(budget_ms)
        rows.append(
            {
                "budget_ms": budget_ms,
                "ours": float("nan") if ours is None else ours.importance,
                "ours_ms": float("nan") if ours is None else latency.predict_ms(ours),
                "theirs": float("nan") if theirs is None else theirs[0],
                "theirs_ms": float("nan") if theirs is None else theirs[1],
            }
        )
    return rows


def summarise(rows: list[dict[str, float]]) -> dict[str, Any]:
    excesses = [100 * (row["theirs_ms"] / row["budget_ms"] - 1) for row in rows if row["theirs_ms"] > row["budget_ms"]]
    within = [row for row in rows if row["theirs_ms"] <= row["budget_ms"]]
    return {
        "budgets": len(rows),
        "feasible": sum(row["ours"] == row["ours"] for row in rows),
        "ours_over_budget": sum(row["ours_ms"] > row["budget_ms"] for row in rows),
        "ours_worse_than_published_within_budget": sum(not row["ours"] >= row["theirs"] - 1e-9 for row in within),
        "ours_better_than_published_within_budget": sum(row["ours"] > row["theirs"] + 1e-9 for row in within),
        "published_within_budget": len(within),
        "published_over_budget": len(excesses),
        "published_excess_pct_median": round(statistics.median(excesses), 2) if excesses else 0.0,
        "published_excess_pct_worst": round(max(excesses), 2) if excesses else 0.0,
    }


def compare_speed(name: str, plain: bool) -> dict[str, Any]:
    """Time all budgets here and one budget there, in this process, one after the other."""
    from layerfold.solver import solve_frontier
    from tests.oracles.published import solve_discretised, transcribed_value

    latency, importance = read_latency(name), random_importance(name, 0, plain)
    ((_, num_layers),) = latency.chains
    times = {(e.start, e.end): e.latency_ms for e in latency.entries}
    gains = {e.key: e.importance for e in importance.entries}
    budget_ms = 25.0 if name == "mbv2_1.0" else 0.9 * latency.original_ms

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        # Processor time: both are single-threaded, and other jobs on the machine would stretch the longer one more.
        began = time.process_time()
        answer = work()
        return time.process_time() - began, answer

    problem = (times, gains, num_layers, budget_ms, PRECISION)
    # Taken in turn; the medians are compared.
    ours, lean, written = [], [], []
    for _ in range(3):
        ours += [timed(lambda: solve_frontier(latency, importance))[0] for _ in range(20)]
        seconds, answer = timed(lambda: solve_discretised(*problem))
        lean.append(seconds)
        seconds, value = timed(lambda: transcribed_value(*problem))
        written.append(seconds)
    ours_s, lean_s, written_s = (statistics.median(each) for each in (ours, lean, written))
    if answer is None or abs(answer[0] - value) > 1e-9:
        sys.exit("error: the two versions of the published algorithm differ")
    solution = solve_frontier(latency, importance).at(budget_ms=budget_ms)
    return {
        "budget_ms": budget_ms,
        "ours_all_budgets_ms": round(1000 * ours_s, 3),
        "published_as_written_one_budget_ms": round(1000 * written_s, 1),
        "published_lean_lists_one_budget_ms": round(1000 * lean_s, 1),
        "ratio_as_written": round(written_s / ours_s),
        "ratio_lean_lists": round(lean_s / ours_s),
        "ours_predicted_ms": solution.predicted_ms,
        "published_predicted_ms": answer[1],
    }


if __name__ == "__main__":
    sys.exit(main())
