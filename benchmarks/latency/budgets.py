"""Whether budgets are kept and used: five networks, three speed-ups each, the closed loop of ``compress``.

    python benchmarks/latency/budgets.py                       # all fifteen cases
    python benchmarks/latency/budgets.py mobilenet_v2 --speedups 1.2 1.4

What is tested is latency, so no data is needed: importances are made up (each activation removed costs a random amount
between 0.2 and 1.8 points, from a fixed seed) and the weights are random. Every case ends in a success, whose
measured upper bound must keep the budget, or in the least budget that can be met. A success is measured once more
afterwards, by itself. The tables are those of ``prediction.py`` where it ran before. Resumable.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from latency_networks import CASES, WORK, open_case
from made_up_importance import made_up_importance
from record import RESULTS, write_record

import layerfold as lf
from layerfold.budget import Budget
from layerfold.errors import InfeasibleBudgetError
from layerfold.export import export_onnx
from layerfold.graph import Network
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import meet_budget
from layerfold.profiler import get_backend, verify_solution
from layerfold.profiler.verify import example_input_of

SPEEDUPS = (1.2, 1.4, 1.7)
MARGIN = 0.02
_LEAST_USE = 0.9
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


def run_network(name: str, speedups: list[float]) -> dict[str, Any]:
    """Profile one network and run the loop for each speed-up."""
    model, net, candidates = open_case(name)
    backend = get_backend("onnxruntime", threads=1)
    table = lf.profile_network(
        model, net, backend, candidates=candidates, cache=WORK / f"{name}.sqlite", model_name=CASES[name].source
    )
    importance = made_up_importance(net, table)
    original = export_onnx(model, example_input_of(net))
    found: dict[str, Any] = {}
    for speedup in sorted(speedups):
        path = WORK / f"budget-{name}-{speedup:g}.json"
        if any(each["status"] != "met" for each in found.values()):
            found[f"{speedup:g}"] = {"status": "unreachable", "message": "a lower speed-up is already", "seconds": 0.0}
            continue
        if not path.exists():
            path.write_text(json.dumps(run_budget(model, net, table, importance, speedup, backend, original)))
        found[f"{speedup:g}"] = json.loads(path.read_text())
        print_case(name, f"{speedup:g}", found[f"{speedup:g}"])
    return found


def run_budget(
    model: Any,
    net: Network,
    table: lf.LatencyTable,
    importance: lf.ImportanceTable,
    speedup: float,
    backend: Any,
    original: bytes,
) -> dict[str, Any]:
    """Run the loop once and measure its answer once more."""
    began = time.perf_counter()
    try:
        meter = BackendMeter(model, net, table, backend, original_onnx=original)
        found = meet_budget(net, table, importance, Budget(speedup=speedup), meter, margin=MARGIN)
    except InfeasibleBudgetError as error:
        return {
            "status": "unreachable",
            "message": str(error),
            "seconds": time.perf_counter() - began,
            "least_ms": error.least_ms,
            "budget_ms": error.budget_ms,
        }
    seconds = time.perf_counter() - began
    verification = found.verification
    again = verify_solution(model, net, found.solution, backend, speedup=speedup, original_onnx=original, cap_s=6.0)
    limit = (1 - MARGIN) / speedup
    ratios = found.frontier.latencies_ms[:, 0] / found.latency.original_ms
    return {
        "status": "met",
        "seconds": seconds,
        "verifications": len(found.rounds),
        "trials": len(found.trials),
        "budget_ms": verification.budget_ms,
        "measured_ms": verification.measured_ms,
        "high_ms": verification.high_ms,
        "ratio": verification.ratio,
        "ratio_high": verification.ratio_high,
        "is_settled": verification.is_settled,
        "is_within": verification.high_ms <= (verification.budget_ms or 0) and verification.ratio_high <= 1 / speedup,
        "predicted_ratio": found.rounds[0].predicted_ms / table.original_ms,
        "used": verification.ratio * speedup,
        "has_plan_near": bool(((ratios >= _LEAST_USE / speedup) & (ratios <= limit)).any()),
        "importance": found.solution.importance,
        "segments_merged": sum(s.plan == "merge" for s in found.solution.segments),
        "again": {
            "ratio": again.ratio,
            "ratio_high": again.ratio_high,
            "high_ms": again.high_ms,
            "budget_ms": again.budget_ms,
            "is_within": again.is_within_budget,
        },
    }


def print_case(name: str, speedup: str, found: dict[str, Any]) -> None:
    """Print one line."""
    if found["status"] != "met":
        text = f"unreachable: {found['message']}"
    else:
        text = (
            f"{1 / found['ratio']:.3f}x, at least {1 / found['ratio_high']:.3f}x, "
            f"{100 * found['used']:.0f} % of the budget used, {found['verifications']} verifications, "
            f"{found['trials']} plans timed; again {1 / found['again']['ratio']:.3f}x"
        )
        if found["used"] < _LEAST_USE:
            text += "" if found["has_plan_near"] else " (no plan lies nearer)"
    print(f"{name} {speedup}x ({found['seconds']:.0f} s): {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*CASES, []], metavar="NETWORK", help=", ".join(CASES))
    parser.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS), metavar="X")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    names = arguments.networks or list(CASES)
    if arguments.fresh:
        for name in names:
            for path in WORK.glob(f"budget-{name}-*.json"):
                path.unlink()
    results = {name: run_network(name, arguments.speedups) for name in names}
    earlier = RESULTS / "budgets.json"
    if arguments.networks and earlier.exists():
        results = {**json.loads(earlier.read_text())["results"], **results}
    runs = [each for found in results.values() for each in found.values() if each["status"] == "met"]
    near = [each for each in runs if each["has_plan_near"]]
    print(
        f"{len(runs)} runs report success; upper bound within the budget in {sum(r['is_within'] for r in runs)}; "
        f"at least {100 * _LEAST_USE:.0f} % used in {sum(r['used'] >= _LEAST_USE for r in near)} of {len(near)} "
        f"where a plan lies there"
    )
    write_record(
        "budgets",
        results,
        {
            "speedups": arguments.speedups,
            "margin": MARGIN,
            "threads": 1,
            "batch": 1,
            "importance": "made up, see the script",
        },
        packages=_PACKAGES,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
