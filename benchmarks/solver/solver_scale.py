"""What a solve costs: against the number of layers, candidates per start, and options per candidate.

    python benchmarks/solver/solver_scale.py [--plot docs/images/solver_cost.png]

Each size runs in a process of its own, so that peak memory is that size's. The gap is what is proven about the
answers at 1,000 budgets spread evenly over the frontier, as a part of the span of importance; where it is more than
epsilon, the budget is searched on its own, as Frontier.at does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import ROOT, peak_memory_mib, write_record

SIZES = [
    (1000, 1, 10),
    (1000, 5, 10),
    (1000, 10, 10),
    (1000, 20, 1),
    (1000, 20, 3),
    (1000, 20, 10),
    (1000, 20, 30),
    (50, 20, 10),
    (100, 20, 10),
    (200, 20, 10),
    (500, 20, 10),
    (2000, 20, 10),
    (20, 20, 10),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", type=float, default=1e-4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", default=str(ROOT / "docs" / "images" / "solver_cost.png"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*map(int, args.one.split(",")), args.epsilon, args.repeats)))
        return 0
    rows = []
    for size in SIZES:
        command = [
            sys.executable,
            __file__,
            "--one",
            ",".join(map(str, size)),
            "--epsilon",
            str(args.epsilon),
            "--repeats",
            str(args.repeats),
        ]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(rows[-1], file=sys.stderr)
    write_record("solver_scale", {"sizes": rows}, {"epsilon": args.epsilon, "repeats": args.repeats})
    plot(rows, args.plot)
    asked = [row for row in rows if row["layers"] == 1000 and row["options"] == 10]
    return int(any(row["best_s"] > 1.0 or row["peak_mib"] > 1024 for row in asked))


def random_options(layers: int, candidates: int, options: int, seed: int = 0) -> Any:
    """Return a chain's options: merging saves latency and costs importance, the more the longer; pruning likewise."""
    import numpy as np

    from layerfold.solver.options import StretchPlan, chain_options

    rng = np.random.default_rng(seed)
    start = np.repeat(np.arange(layers), candidates)
    end = start + np.tile(np.arange(1, candidates + 1), layers)
    start, end = start[end <= layers], end[end <= layers]
    length = end - start
    edges = np.concatenate(([0.0], np.cumsum(rng.uniform(0.2, 1.0, layers))))
    latency = (edges[end] - edges[start]) * rng.uniform(0.35, 1.1, len(start)) * length**-0.3
    importance = -rng.gamma(2.0, 0.1, len(start)) * (length - 1) ** 1.1
    start, end = np.repeat(start, options), np.repeat(end, options)
    share = rng.uniform(0.3, 1.0, len(start))
    return chain_options(
        chain=(0, layers),
        from_state=2 * start + 1,
        to_state=2 * end + 1,
        costs=(np.repeat(latency, options) * share)[:, None],
        importances=np.repeat(importance, options) - rng.gamma(2.0, 0.2, len(start)) * (1.0 - share) ** 1.5,
        plan_of=lambda index: StretchPlan(breaks=()),
    )


def measure(layers: int, candidates: int, options: int, epsilon: float, repeats: int) -> dict[str, Any]:
    """Solve one size; exact where the frontier stays small enough, else by epsilon-dominance."""
    import numpy as np

    from layerfold.solver._refine import refine_budget
    from layerfold.solver.labels import least_to_go
    from layerfold.solver.search import solve_options

    problem = random_options(layers, candidates, options)
    idle_mib = peak_memory_mib()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = solve_options([problem], [least_to_go(problem)], epsilon=epsilon)
        seconds.append(time.perf_counter() - began)
    assert found is not None
    costs, importances = found.summed.costs[:, 0], found.summed.importances
    gaps, proven, search_s = np.zeros(1), [True], [0.0]
    if found.hull is not None:
        budgets = np.linspace(costs[0], costs[-1], 1000)
        answers = importances[np.searchsorted(costs, budgets, side="right") - 1]
        gaps = np.maximum(found.hull.bound(budgets) - answers, 0.0) / found.hull.span
        # What Frontier.at does where that is more than epsilon: search this one budget.
        for index in range(5, 1000, 20):
            began = time.perf_counter()
            is_done = gaps[index] <= epsilon
            if not is_done:
                assert found.options is not None
                _, is_done = refine_budget(found.options, found.hull, budgets[index], answers[index] + found.gap)
            proven.append(is_done)
            search_s.append(time.perf_counter() - began)
    return {
        "layers": layers,
        "candidates": candidates,
        "options": options,
        "all_options": len(problem.importances),
        "points": len(costs),
        "best_s": round(min(seconds), 4),
        "median_s": round(statistics.median(seconds), 4),
        "peak_mib": round(peak_memory_mib()),
        "before_mib": round(idle_mib),
        "gap_median": float(f"{np.median(gaps):.2g}"),
        "gap_p90": float(f"{np.quantile(gaps, 0.9):.2g}"),
        "gap_worst": float(f"{gaps.max():.2g}"),
        "budgets_proven_within_epsilon": round(float(np.mean(proven)), 3),
        "search_of_a_budget_mean_s": round(float(np.mean(search_s)), 4),
    }


def plot(rows: list[dict[str, Any]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.4), dpi=150, layout="constrained", sharey=True)
    for axes, name, fixed in (
        (panels[0], "layers", {"candidates": 20, "options": 10}),
        (panels[1], "options", {"layers": 1000, "candidates": 20}),
        (panels[2], "candidates", {"layers": 1000, "options": 10}),
    ):
        chosen = sorted(
            (row for row in rows if all(row[key] == value for key, value in fixed.items())), key=lambda row: row[name]
        )
        axes.plot([row[name] for row in chosen], [row["best_s"] for row in chosen], "o-", color="#1f5aa6")
        axes.axhline(1.0, color="#7a7a7a", linestyle="--", linewidth=1)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel={"layers": "layers", "options": "options per candidate", "candidates": "candidates per start"}[name],
        )
        axes.set_title(", ".join(f"{value:,} {key}" for key, value in fixed.items()), fontsize=9, loc="left")
        axes.set_xticks([row[name] for row in chosen], [f"{row[name]:,}" for row in chosen])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds, all budgets")
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
