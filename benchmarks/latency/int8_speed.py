"""How much faster is the fastest merged network in int8 than the quantised original, and than float32? Four networks.

    python benchmarks/latency/int8_speed.py                              # OpenVINO, one thread, 224 px
    python benchmarks/latency/int8_speed.py --backend onnxruntime mobilenet_v2

Each network is profiled in both precisions, and the fastest plan of each is found as the budget loop finds it. Then the
original and these plans, each in float32 and in int8, are timed in turns in one run. Networks have random weights and
constant scales: latency hardly depends on either. Resumable: what is done is kept in the record, measurements in
``build/latency``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from latency_networks import CASES, WORK, Case, open_case
from record import RESULTS, commit, write_record

import layerfold as lf
from layerfold.export import export_onnx
from layerfold.export.precision import has_quantised_nodes
from layerfold.graph import example_images
from layerfold.merge import build_train_form, merge_network
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.plan_search import PlanSearch
from layerfold.profiler import get_backend
from layerfold.profiler.backends.base import cpu_flags

CASES["mobilenetv4_conv_small"] = Case(source="timm:mobilenetv4_conv_small")
NETWORKS = ("mobilenet_v2", "efficientnet_lite0", "mobilenetv4_conv_small", "resnet34")
PRECISIONS = ("float32", "int8")
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy")
_MATRIX_FLAGS = ("amx", "vnni", "avx512f", "avx2", "i8mm")


def measure(name: str, backend_name: str, growth: float) -> dict[str, Any]:
    """Return the latencies of one network: original and fastest plans, in both precisions, in one run."""
    model, net, _ = open_case(name)
    candidates = net.candidates(max_growth=growth)
    backends = {each: get_backend(backend_name, threads=1, precision=each) for each in PRECISIONS}
    original = export_onnx(model, example_images((1, *CASES[name].input_shape)))
    networks: dict[str, bytes] = {"original int8": original, "original float32": original}
    plans = {}
    for precision, backend in backends.items():
        table = lf.profile_network(
            model, net, backend, candidates=candidates, cache=WORK / f"{name}-{backend_name}-{precision}-speed.sqlite"
        )
        meter = BackendMeter(model, net, table, backend, batch=1, original_onnx=original)
        solution = PlanSearch(net, table, None, meter.time).fastest(5)
        plans[precision] = {"act_pos": solution.act_pos, "merge_pos": solution.merge_pos}
        merged = merge_network(build_train_form(model, net, solution).eval(), tolerance=None)
        onnx_bytes = export_onnx(merged, example_images((1, *CASES[name].input_shape)))
        for each in PRECISIONS:
            networks[f"fastest in {precision}, run in {each}"] = onnx_bytes
    assert not any(map(has_quantised_nodes, networks.values())), "quantised just before they are compiled"
    others = {each: backends["float32"] for each in networks if each.endswith("float32")}
    report = lf.benchmark_networks(networks, None, backends["int8"], others=others, target=0.005, cap_s=8)
    return {
        "latencies": {
            each.name: {"ms": each.median_ms, "ratio": each.ratio, "low": each.ratio_low, "high": each.ratio_high}
            for each in report.networks
        },
        "plans": plans,
        "candidates": len(candidates),
        "commit": commit(),
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print one network's latencies, and speed-ups over the original quantised and in float32."""
    latencies = found["latencies"]
    first, in_float = latencies["original int8"]["ms"], latencies["original float32"]["ms"]
    print(f"\n{name}, {found['candidates']} candidates\n{'network':36}{'ms':>9}{'to int8':>10}{'to float32':>12}")
    for each, facts in latencies.items():
        print(f"{each:36}{facts['ms']:9.3f}{first / facts['ms']:9.2f}x{in_float / facts['ms']:11.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--backend", choices=("openvino", "onnxruntime"), default="openvino")
    parser.add_argument("--growth", type=float, default=12.0, help="limit on candidates' growth (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="measure again what the record holds")
    arguments = parser.parse_args()
    if unknown := set(arguments.networks) - set(NETWORKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(NETWORKS)}")
    WORK.mkdir(parents=True, exist_ok=True)
    record = f"int8_speed_{arguments.backend}"
    path = RESULTS / f"{record}.json"
    done: dict[str, Any] = json.loads(path.read_text())["results"]["networks"] if path.exists() else {}
    flags = sorted(flag for flag in cpu_flags() if any(each in flag for each in _MATRIX_FLAGS))
    for name in arguments.networks or NETWORKS:
        if name not in done or arguments.fresh:
            done[name] = measure(name, arguments.backend, arguments.growth)
            write_record(record, {"flags": flags, "networks": done}, vars(arguments), packages=_PACKAGES)
        show(name, done[name])


if __name__ == "__main__":
    main()
