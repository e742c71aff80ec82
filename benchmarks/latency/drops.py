"""What dropping layers adds to merging them: fastest network that can be reached, and the frontier, five networks.

    python benchmarks/latency/drops.py                       # all five, some minutes each
    python benchmarks/latency/drops.py cifar_resnet56        # one

Each network is profiled twice as ``layerfold profile`` does it (ONNX Runtime, one thread): with merging alone, and with
``--drop-layers``. The fastest plan of either is searched, merged with the weights it has, exported as it would be
shipped, and measured in turns with the original. Then both frontiers are solved from one and the same table, the
one with drops, so that they differ by the options alone: at no budget may the one with drops have less importance.
Weights are random and importances made up (``made_up_importance.py``): what is shown is latency, and that the solver
uses what it is given. Measurements are kept in ``build/latency``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from frontiers import compare_frontiers
from latency_networks import CASES, MAX_GROWTH, WORK, open_case
from made_up_importance import made_up_importance
from record import RESULTS, write_record

import layerfold as lf
from layerfold.budget import Budget
from layerfold.export import export_onnx
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import meet_budget
from layerfold.profiler import get_backend
from layerfold.profiler.verify import example_input_of

_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


def run_network(name: str) -> dict[str, Any]:
    """Profile one network both ways; return its fastest plans and frontiers."""
    model, net, candidates = open_case(name)
    backend = get_backend("onnxruntime", threads=1)
    options = net.candidates(max_growth=MAX_GROWTH, layer_norms=lf.layer_norms(model, net))
    original = export_onnx(model, example_input_of(net))
    found: dict[str, Any] = {"candidates": len(candidates), "options_with_drops": len(options) - len(candidates)}
    tables = {}
    for way, segments in (("merging", candidates), ("dropping too", options)):
        began = time.perf_counter()
        table = lf.profile_network(
            model, net, backend, candidates=segments, cache=WORK / f"{name}.sqlite", model_name=CASES[name].source
        )
        seconds = time.perf_counter() - began
        meter = BackendMeter(model, net, table, backend, original_onnx=original)
        fastest = meet_budget(net, table, made_up_importance(net, table), Budget(), meter)
        kept = fastest.solution.kept_layers
        seen = fastest.verification
        found[way] = {
            "profile_s": seconds,
            "original_ms": seen.original_ms,
            "measured_ms": seen.measured_ms,
            "speedup": 1 / seen.ratio,
            "speedup_low": 1 / seen.ratio_high,
            "speedup_high": 1 / seen.ratio_low,
            "predicted_ms": fastest.rounds[-1].predicted_ms,
            "convs": sum(each.kernel != "identity" for each in fastest.solution.segments),
            "dropped": 0 if kept is None else len(net.layers) - len(kept),
        }
        tables[way] = table
    found["frontiers"] = compare_frontiers(tables["dropping too"], made_up_importance(net, tables["dropping too"]))
    return found


def kept(name: str) -> dict[str, Any]:
    """Return what an earlier run left, or do the work and keep it."""
    path = WORK / f"drops-{name}.json"
    if not path.exists():
        path.write_text(json.dumps(run_network(name)))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def print_network(name: str, found: dict[str, Any]) -> None:
    """Print what counts."""
    print(f"{name}: {found['candidates']} candidates, {found['options_with_drops']} options with dropped layers")
    for way in ("merging", "dropping too"):
        each = found[way]
        interval = f"{each['speedup_low']:.2f} to {each['speedup_high']:.2f}"
        print(
            f"  fastest by {way:13s} {each['speedup']:.2f}x ({interval}), {each['convs']} convs, "
            f"{each['dropped']} layers dropped; profile {each['profile_s']:.0f} s"
        )
    frontiers = found["frontiers"]
    print(
        f"  frontiers: at {frontiers['budgets_compared']} budgets better with drops at "
        f"{frontiers['better_with_drops']}, worse at {frontiers['worse_with_drops']}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*CASES, []], metavar="NETWORK", help=", ".join(CASES))
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.networks or CASES:
        if arguments.fresh:
            (WORK / f"drops-{name}.json").unlink(missing_ok=True)
        results[name] = kept(name)
        print_network(name, results[name])
    earlier = RESULTS / "drops.json"
    if arguments.networks and earlier.exists():
        results = {**json.loads(earlier.read_text())["results"], **results}
    write_record(
        "drops",
        {name: results[name] for name in CASES if name in results},
        {"threads": 1, "batch": 1, "max_growth": MAX_GROWTH, "importance": "made up"},
        packages=_PACKAGES,
    )
    return int(any(each["frontiers"]["worse_with_drops"] for each in results.values()))


if __name__ == "__main__":
    sys.exit(main())
