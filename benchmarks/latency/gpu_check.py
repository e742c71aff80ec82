"""Everything that wants a GPU, in one command of under eight minutes: tables, prediction, budgets, other backends.

    python benchmarks/latency/gpu_check.py                # MobileNetV2 and ResNet-50, batch 1 and 128
    python benchmarks/latency/gpu_check.py --device cpu --networks mobilenetv2_035 --batches 1 --side 64   # no GPU

For each network and batch the ``torch`` backend fills a latency table as ``layerfold profile`` does; held-out random
plans are timed twice and compared with what the table predicts; the budget loop runs for a speed-up. Then every other
backend that a GPU may have is tried on a merged network: it either runs, and agrees with ONNX Runtime on the CPU, or
its reason is written down. What there is no time left for is written down too. Nothing is kept between runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import numpy as np
import torch
from made_up_importance import made_up_importance
from predictions import errors, with_intervals
from record import write_record

import layerfold as lf
from layerfold.budget import Budget
from layerfold.errors import InfeasibleBudgetError, LayerfoldError
from layerfold.export import export_onnx
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import meet_budget
from layerfold.profiler import get_backend
from layerfold.profiler.graphs.outside import outside_graph
from layerfold.profiler.plans.draw import covering_solutions
from layerfold.profiler.plans.fitted import beliefs_of, growth_of, plans_of
from layerfold.profiler.plans.plan import pooled
from layerfold.profiler.plans.timer import PlanTimer

HELD_OUT = 12
SPEEDUPS = (1.1, 1.3)
_OTHERS = (("onnxruntime", "cuda"), ("onnxruntime", "tensorrt"), ("tensorrt", None), ("torch_tensorrt", None))
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy")


class Clock:
    """Says whether there is time left for something more."""

    def __init__(self, minutes: float) -> None:
        self.began, self.limit_s = time.perf_counter(), 60 * minutes

    @property
    def spent_s(self) -> float:
        return time.perf_counter() - self.began

    def has(self, share: float) -> bool:
        """Say whether less than this share of the time is spent."""
        return self.spent_s < share * self.limit_s


def check_network(name: str, batch: int, arguments: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Fill one table, hold it against plans that it has not seen, and run the budget loop."""
    torch.manual_seed(0)
    model = lf.load_model(f"timm:{name}").module.eval()
    net = lf.trace_network(model, torch.zeros(1, 3, arguments.side, arguments.side))
    backend = get_backend("torch", device=arguments.device)
    candidates = net.candidates(max_growth=4.0)
    began = time.perf_counter()
    table = lf.profile_network(
        model, net, backend, batch=batch, candidates=candidates, cache=False, num_plans=arguments.plans, cap_s=0.1
    )
    found: dict[str, Any] = {
        "candidates": len(candidates),
        "profile_s": time.perf_counter() - began,
        "original_ms": table.original_ms,
        "device": table.provenance.device,
        "driver": table.provenance.driver,
        "faster_segments": sum(end - start > 1 for start, end in table.useful_segments()),
    }
    say(f"{name}, batch {batch}: {table.original_ms:.4g} ms, table in {found['profile_s']:.0f} s")
    seen = {plan.merge_pos for plan in plans_of(table)}
    pool = covering_solutions(net, growth_of(table.entries), 4 * HELD_OUT, seed=1000)
    held_out = [plan for plan in pool if plan[1] not in seen][:HELD_OUT]
    if held_out and clock.has(0.8):
        outside = outside_graph(model, net, batch=batch)
        visits = [PlanTimer(net, outside, backend).measure(plans) for plans in (held_out, held_out[::-1])]
        visits[1] = visits[1][::-1]
        truth = [pooled(pair) for pair in zip(*visits, strict=True)]
        found["repeat"] = errors(*([each.ratio for each in visit] for visit in visits))
        found["prediction"] = with_intervals(beliefs_of(table), truth, [each.ratio for each in truth])
        say(
            f"  prediction: median {found['prediction']['median_pct']:.2f} %, max "
            f"{found['prediction']['max_pct']:.1f} %, rank {found['prediction']['rank']:.3f}; the machine itself "
            f"{found['repeat']['median_pct']:.2f} %, {found['repeat']['max_pct']:.1f} %"
        )
    found["budgets"] = {}
    for speedup in SPEEDUPS if clock.has(0.8) else ():
        found["budgets"][f"{speedup:g}"] = check_budget(model, net, table, speedup, backend, batch)
        say(f"  budget {speedup:g}x: {found['budgets'][f'{speedup:g}']}")
        if found["budgets"][f"{speedup:g}"]["status"] != "met" or not clock.has(0.8):
            break
    return found


def check_budget(
    model: Any, net: lf.Network, table: lf.LatencyTable, speedup: float, backend: Any, batch: int
) -> dict[str, Any]:
    """Run the closed loop once."""
    try:
        meter = BackendMeter(model, net, table, backend, batch=batch)
        found = meet_budget(net, table, made_up_importance(net, table), Budget(speedup=speedup), meter, cap_s=2.0)
    except InfeasibleBudgetError as error:
        return {"status": "unreachable", "message": str(error)}
    seen = found.verification
    return {
        "status": "met",
        "speedup": 1 / seen.ratio,
        "speedup_low": 1 / seen.ratio_high,
        "is_within": seen.is_within_budget,
        "used": seen.ratio * speedup,
        "plans_timed": len(found.trials),
    }


def try_backends(side: int) -> dict[str, Any]:
    """Run a merged MobileNetV2 on every other backend that a GPU may have; what does not work says why."""
    torch.manual_seed(0)
    model = lf.load_model("timm:mobilenetv2_100").module.eval()
    net = lf.trace_network(model, torch.zeros(1, 3, side, side))
    stops = tuple(m for m in range(1, len(net.layers) + 1) if m % 3 == 0 or m in (1, 2, len(net.layers)))
    solution = lf.Solution(act_pos=tuple(m for m in net.original_act_pos if m in stops), merge_pos=stops)
    graph = export_onnx(
        lf.merge_network(lf.build_train_form(model, net, solution).eval(), tolerance=None),
        torch.zeros(1, 3, side, side),
    )
    image = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    expected, name = run_graph(get_backend("onnxruntime"), graph, image)
    found = {}
    for backend, device in _OTHERS:
        title = backend if device is None else f"{backend}, {device}"
        try:
            chosen = get_backend(backend, device=device)
            output, _ = run_graph(chosen, graph, image, name)
            worst = float(np.abs(output - expected).max() / np.abs(expected).max())
            median_ms = lf.benchmark_networks({"merged": graph}, None, chosen, cap_s=2.0).networks[0].median_ms
            found[title] = {
                "works": worst < 1e-2,
                "max_rel_difference": worst,
                "median_ms": median_ms,
                **{key: chosen.provenance()[key] for key in ("device", "driver", "versions")},
            }
        except LayerfoldError as error:
            found[title] = {"works": False, "reason": " ".join(str(error).split())}
        say(f"{title}: {found[title]}")
    return found


def run_graph(backend: Any, graph: bytes, image: Any, name: str | None = None) -> tuple[Any, str]:
    """Return the first output of a graph for an image, and the name of its input."""
    import onnx

    name = name or onnx.load_from_string(graph).graph.input[0].name
    runner = backend.compile(graph)
    try:
        return np.asarray(runner.infer({name: image})[0], dtype=np.float64), name
    finally:
        runner.close()


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["mobilenetv2_100", "resnet50"],
        metavar="NAME",
        help="of timm (default: mobilenetv2_100 resnet50)",
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128], metavar="N")
    parser.add_argument("--side", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--device", default="cuda", help="of the torch backend (default: %(default)s)")
    parser.add_argument("--plans", type=int, default=20, metavar="N", help="whole networks per table (%(default)s)")
    parser.add_argument("--minutes", type=float, default=7.5, metavar="M", help="begin nothing new after most of these")
    arguments = parser.parse_args()
    clock, results = Clock(arguments.minutes), {}
    others = try_backends(arguments.side)
    for name in arguments.networks:
        for batch in arguments.batches:
            title = f"{name}, batch {batch}"
            if not clock.has(0.7):
                results[title] = {"left_out": f"{clock.spent_s:.0f} s were spent"}
                continue
            results[title] = check_network(name, batch, arguments, clock)
    write_record(
        "gpu_check" if arguments.device != "cpu" else "gpu_check_trial",
        {"seconds": clock.spent_s, "networks": results, "other_backends": others},
        vars(arguments),
        packages=_PACKAGES,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
