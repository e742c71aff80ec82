"""Compare with the published tables and the published algorithm.

    python benchmarks/solver_published.py [--seeds 200]

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
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from solver_record import shared_path, write_record

TABLES = {"mbv2_1.0": "fish_gpu1_1228", "vgg19_no_trt": "fish_gpu1_0317"}
EMPTY_SLOTS = {"mbv2_1.0": frozenset(range(2, 51, 3)), "vgg19_no_trt": frozenset[int]()}
PRECISION = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200, help="random importance tables a network (%(default)s)")
    parser.add_argument("--budgets", type=int, default=20, help="budgets a seed (%(default)s)")
    parser.add_argument("--precision", type=int, default=2,
                        help="steps a millisecond of the published algorithm in the comparison of answers (%(default)s; "
                        "the paper's 20 for the comparison of speed)")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    results: dict[str, Any] = {"t_opt": {name: compare_t_opt(name) for name in TABLES}}
    broken = any(each["rows_that_differ"] for each in results["t_opt"].values())
    results["speed"] = {name: compare_speed(name) for name in TABLES}
    results["answers"] = {}
    for name in TABLES:
        work = partial(compare_answers, name, budgets=args.budgets, precision=args.precision)
        with ProcessPoolExecutor(args.workers) as pool:
            rows = [row for rows in pool.map(work, range(args.seeds), chunksize=2) for row in rows]
        summary = summarise(rows)
        results["answers"][name] = summary
        broken |= bool(summary["ours_over_budget"] or summary["ours_worse_than_published_within_budget"])
    broken |= results["speed"]["mbv2_1.0"]["ratio"] < 1000
    write_record("solver_published", results, vars(args) | {"speed_precision": PRECISION})
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


def random_importance(name: str, seed: int) -> Any:
    """Return an importance table of the published segments: keeping costs little, merging more the longer it is."""
    from layerfold.tables import ImportanceEntry, ImportanceTable

    latency, rng = read_latency(name), random.Random(seed)
    (first, last), = latency.chains
    empty = EMPTY_SLOTS[name]

    def states(position: int) -> tuple[int, ...]:
        if position in (first, last):
            return (0 if position == last and position in empty else 1,)
        return (0, 1) if position in empty else (1,)

    return ImportanceTable([
        ImportanceEntry(start=e.start, end=e.end, start_act=a, end_act=b,
                        importance=-rng.gammavariate(1.0, 0.4) * (e.end - e.start - 0.95) ** rng.uniform(0.5, 1.5))
        for e in latency.entries for a in states(e.start) for b in states(e.end)
    ])


def compare_answers(name: str, seed: int, *, budgets: int, precision: int) -> list[dict[str, float]]:
    """Return one row a budget: what either solver reaches."""
    from layerfold.errors import InfeasibleBudgetError
    from layerfold.solver import solve_frontier
    from tests.oracles.published import solve_discretised

    latency, importance = read_latency(name), random_importance(name, seed)
    frontier = solve_frontier(latency, importance)
    (_, num_layers), = latency.chains
    times = {(e.start, e.end): e.latency_ms for e in latency.entries}
    gains = {e.key: e.importance for e in importance.entries}
    rng = random.Random(-seed - 1)
    rows = []
    for _ in range(budgets):
        budget_ms = rng.uniform(0.97 * frontier.least_ms, 1.05 * float(frontier.latencies_ms[-1, 0]))
        try:
            ours = frontier.at(budget_ms=budget_ms)
        except InfeasibleBudgetError:
            ours = None
        theirs = solve_discretised(times, gains, num_layers, budget_ms, precision)
        rows.append({
            "budget_ms": budget_ms,
            "ours": float("nan") if ours is None else ours.importance,
            "ours_ms": float("nan") if ours is None else latency.predict_ms(ours),
            "theirs": float("nan") if theirs is None else theirs[0],
            "theirs_ms": float("nan") if theirs is None else theirs[1],
        })
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


def compare_speed(name: str) -> dict[str, Any]:
    """Time all budgets here and one budget there, in this process, one after the other."""
    from layerfold.solver import solve_frontier
    from tests.oracles.published import solve_discretised

    latency, importance = read_latency(name), random_importance(name, 0)
    (_, num_layers), = latency.chains
    times = {(e.start, e.end): e.latency_ms for e in latency.entries}
    gains = {e.key: e.importance for e in importance.entries}
    budget_ms = 25.0 if name == "mbv2_1.0" else 0.9 * latency.original_ms

    def ours() -> float:
        began = time.perf_counter()
        solve_frontier(latency, importance)
        return time.perf_counter() - began

    ours()
    before = [ours() for _ in range(15)]
    began = time.perf_counter()
    answer = solve_discretised(times, gains, num_layers, budget_ms, PRECISION)
    theirs_s = time.perf_counter() - began
    ours_s = statistics.median(before + [ours() for _ in range(15)])
    solution = solve_frontier(latency, importance).at(budget_ms=budget_ms)
    return {
        "ours_all_budgets_ms": round(1000 * ours_s, 3), "published_one_budget_ms": round(1000 * theirs_s, 1),
        "ratio": round(theirs_s / ours_s), "budget_ms": budget_ms, "ours_predicted_ms": solution.predicted_ms,
        "published_predicted_ms": None if answer is None else answer[1],
    }


if __name__ == "__main__":
    sys.exit(main())
