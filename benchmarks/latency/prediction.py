"""How well tables predict whole networks: five networks, 30 held-out random plans each, against what it costs.

    python benchmarks/latency/prediction.py                    # all five, about five minutes each
    python benchmarks/latency/prediction.py mobilenet_v2       # one
    python benchmarks/latency/prediction.py --ways mobilenet_v2 cifar_resnet56   # also every segment in a network
    python benchmarks/latency/prediction.py --backend openvino --precision int8 mobilenet_v2   # another record

Each network is profiled as ``layerfold profile`` does it (ONNX Runtime, one thread). Then 30 random plans that no fit
has seen are timed twice, at two moments, in turns with the original; the mean of both readings is what a prediction
is compared with, and their difference is the machine's own repeat error (where they differ by more than 4 %, two more
are taken and the median counts). Beside the fitted table stand the segments
alone, as they are and with a constant and a scale fitted to the same plans. Resumable: measurements are kept in
``build/latency``; ``--fresh`` measures again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from calibrate import calibrate_latency
from latency_networks import CASES, WORK, open_case
from predictions import errors, ratios_of, with_intervals
from record import RESULTS, write_record

import layerfold as lf
from layerfold.export.precision import canonical_precision, graph_dtype
from layerfold.profiler import get_backend
from layerfold.profiler.backends.base import cpu_flags
from layerfold.profiler.graphs.outside import outside_graph
from layerfold.profiler.plans.beliefs import Beliefs
from layerfold.profiler.plans.draw import covering_solutions, promising_segments
from layerfold.profiler.plans.fitted import beliefs_of, fitted_table, growth_of, plans_of
from layerfold.profiler.plans.plan import MeasuredPlan, Plan, pooled
from layerfold.profiler.plans.timer import PlanTimer
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.table.neighbours import NeighbourTimer
from layerfold.profiler.timing.measurement import MeasurePolicy

NUM_HELD_OUT = 30
USUAL = ("onnxruntime", "float32")
_HELD_OUT_POLICY = MeasurePolicy(target=0.004, cap_s=1.2, block_ms=1.0, warmup_cap_s=0.3)
_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "numpy")
_DOUBT = 0.04
_LIMITS = {"median_pct": 2.0, "max_pct": 5.0, "rank": 0.98}


def run_case(name: str, backend_name: str, precision: str, *, with_ways: bool, num_plans: int | None) -> dict[str, Any]:
    """Profile one network, time its held-out plans twice, and return every way's errors."""
    model, net, candidates = open_case(name)
    backend = get_backend(backend_name, threads=1, precision=precision)
    stem = name + suffix_of(backend_name, precision)
    cache = WORK / f"{stem}.sqlite"
    began = time.perf_counter()
    arguments = {"candidates": candidates, "cache": cache, "model_name": CASES[name].source}
    first = lf.profile_network(model, net, backend, num_plans=0, **arguments)
    alone_s = time.perf_counter() - began
    began = time.perf_counter()
    table = lf.profile_network(model, net, backend, num_plans=num_plans, **arguments)  # from the cache, then the plans
    plans_s = time.perf_counter() - began
    table.write(WORK / f"{stem}.csv")
    isolated = isolated_table(table)
    trained = plans_of(table)
    seen = {each.merge_pos for each in trained}
    pool = covering_solutions(net, growth_of(isolated.entries), 4 * NUM_HELD_OUT, seed=1000)
    held_out = [plan for plan in pool if plan[1] not in seen][:NUM_HELD_OUT]
    outside = outside_graph(model, net, dtype=graph_dtype(precision))

    def visit(number: int, plans: Sequence[Plan]) -> list[MeasuredPlan]:
        with MeasurementCache(WORK / f"{stem}-held_out.sqlite", {"visit": number}) as kept_visit:
            timer = PlanTimer(net, outside, backend, kept_visit, _HELD_OUT_POLICY, dtype=precision)
            return timer.measure(plans)

    began = time.perf_counter()
    # The second time in another order, beside other plans in the same rounds.
    visits = [visit(1, held_out), visit(2, held_out[::-1])[::-1]]
    # Where a neighbour spoilt one of two readings nobody can say which: two more, and the median of the four counts.
    doubtful = [i for i in range(len(held_out)) if abs(visits[0][i].ratio / visits[1][i].ratio - 1) > _DOUBT]
    further = [visit(number, [held_out[i] for i in doubtful]) for number in (3, 4)]
    held_out_s = time.perf_counter() - began
    truth = [pooled(pair) for pair in zip(*visits, strict=True)]
    for place, i in enumerate(doubtful):
        four = sorted((*(each[i] for each in visits), *(each[place] for each in further)), key=lambda each: each.ratio)
        truth[i] = pooled(four[1:3])
    result = {
        "layers": len(net.layers),
        "candidates": len(candidates),
        "plans_fitted": len(trained),
        "original_ms": table.original_ms,
        "alone_s": alone_s,
        "plans_s": plans_s,
        "held_out_s": held_out_s,
        "ratios": {
            "visits": [[each.ratio for each in readings] for readings in visits],
            "deviations": [[each.deviation for each in readings] for readings in visits],
        },
        "held_out": [asdict(each) for each in truth],
        "read_four_times": len(doubtful),
        "repeat": errors(*([each.ratio for each in readings] for readings in visits)),
        "ways": compare_ways(table, isolated, trained, truth, first),
    }
    for each in result["ways"].values():
        count = each.get("plans", 0)
        each["seconds"] = alone_s + plans_s * count / max(len(trained), 1)
    if with_ways:
        result["ways"] |= further_ways(net, backend, table, truth)
    return result


def further_ways(
    net: Any,
    backend: Any,
    table: lf.LatencyTable,
    truth: Sequence[MeasuredPlan],
) -> dict[str, Any]:
    """Return the errors, and the cost, of entries timed between neighbours."""
    measured = [each.ratio for each in truth]
    promising = promising_segments(growth_of(isolated_table(table).entries))
    used = {pair for plan in truth for pair in table.segments_of(plan.merge_pos) if pair[1] - pair[0] > 1}
    segments = [net.segment(*pair) for pair in sorted({*promising, *used})]
    began = time.perf_counter()
    changes = NeighbourTimer(net, backend, dtype=backend.precision).changes_ms(segments)
    seconds = time.perf_counter() - began
    found = {"between its neighbours": {**errors(ratios_of(changes, table, truth), measured), "seconds": seconds}}
    return found


def isolated_table(table: lf.LatencyTable) -> lf.LatencyTable:
    """Return the table of the segments alone that a fitted table was made from."""
    values = table.provenance.options["alone_ms"]
    entries = [
        lf.LatencyEntry(start=entry.start, end=entry.end, latency_ms=value, signature=entry.signature)
        for entry, value in zip(table.entries, values, strict=True)
    ]
    return lf.LatencyTable(
        entries, provenance=lf.Provenance(kind="latency", chains=table.chains, fixed_ms=table.provenance.fixed_ms)
    )


def compare_ways(
    table: lf.LatencyTable,
    isolated: lf.LatencyTable,
    trained: Sequence[MeasuredPlan],
    held_out: Sequence[MeasuredPlan],
    first: lf.LatencyTable,
) -> dict[str, Any]:
    """Return the errors of each way to predict, on the held-out plans."""
    measured = [each.ratio for each in held_out]
    original_ms = table.original_ms
    sums = [isolated.sum_ms(isolated.segments_of(each.merge_pos)) for each in held_out]

    def line(plans: Sequence[MeasuredPlan]) -> list[float]:
        points = [(isolated.sum_ms(isolated.segments_of(each.merge_pos)), each.ratio * original_ms) for each in plans]
        fit = calibrate_latency(isolated, points)
        return [fit.predict_ms(each) / original_ms for each in sums]

    alone = [isolated.end_to_end_ms(each) / original_ms for each in sums]
    plain = beliefs_of(first)
    bare = beliefs_of(fitted_table(isolated, beliefs_of(isolated), original_ms=original_ms))
    ways: dict[str, Any] = {
        "segments alone": {**errors(alone, measured), "predicted": alone},
        "segments alone, relative to the original's sum": errors(
            [isolated.end_to_end_ms(each) / isolated.original_ms for each in sums], measured
        ),
        "segments alone, line through 10 plans": {**errors(line(trained[:10]), measured), "plans": 10},
        f"segments alone, line through {len(trained)} plans": {
            **errors(line(trained), measured),
            "plans": len(trained),
        },
    }
    ways["between neighbours, no whole network"] = {**with_intervals(plain, held_out, measured), "plans": 0}
    ways[f"segments alone, fitted to {len(trained)} plans"] = {
        **with_intervals(Beliefs(bare.segments, bare.chains, trained), held_out, measured),
        "plans": len(trained),
    }
    for count in (5, 10, 20, 30, 45):
        if count < len(trained):
            some = Beliefs(plain.segments, plain.chains, trained[:count])
            ways[f"fitted to {count} plans"] = {**with_intervals(some, held_out, measured), "plans": count}
    ways["fitted"] = {**with_intervals(beliefs_of(table), held_out, measured), "plans": len(trained)}
    return ways


def flags() -> list[str]:
    """Return what of the processor decides how fast whole numbers are."""
    return sorted(each for each in cpu_flags() if each.startswith(("amx", "avx512_vnni", "avx_vnni", "avx512_bf16")))


def suffix_of(backend_name: str, precision: str) -> str:
    """Return what stands behind the names of files of another backend or precision than the usual."""
    return "" if (backend_name, precision) == USUAL else f"-{backend_name}-{precision}"


def kept(name: str, work: Callable[[], dict[str, Any]], *, fresh: bool) -> dict[str, Any]:
    """Return what an earlier run left, or do the work and keep it."""
    path = WORK / f"prediction-{name}.json"
    if fresh:
        for each in WORK.glob(f"{name}*.sqlite*"):
            each.unlink()
    elif path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    result = work()
    path.write_text(json.dumps(result))
    return result


def print_table(results: dict[str, Any]) -> None:
    """Print what counts, one line per way."""
    for name, found in results.items():
        print(
            f"\n{name}: {found['original_ms']:.3g} ms, segments alone {found['alone_s']:.0f} s, "
            f"{found['plans_fitted']} whole networks {found['plans_s']:.0f} s"
        )
        for way, each in {"the machine itself, twice": found["repeat"], **found["ways"]}.items():
            inside = f", {each['inside_95_pct']:.0f} % inside the interval" if "inside_95_pct" in each else ""
            print(
                f"  {way:50s} median {each['median_pct']:5.2f} %, max {each['max_pct']:5.1f} %, "
                f"rank {each['rank']:6.3f}{inside}" + (f", {each['seconds']:.0f} s" if "seconds" in each else "")
            )
        reached = {key: found["ways"]["fitted"][key] for key in _LIMITS}
        repeat = found["repeat"]
        misses = [key for key, limit in _LIMITS.items() if _is_worse(key, reached[key], limit)]
        noisy = [key for key in misses if _is_worse(key, repeat[key], reached[key])]
        print(
            f"  {'reached' if not misses else 'missed: ' + ', '.join(misses)}"
            + (f" (the machine's own repeat error is larger in {', '.join(noisy)})" if noisy else "")
        )


def _is_worse(key: str, value: float, other: float) -> bool:
    return value < other if key == "rank" else value > other


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*CASES, []], metavar="NETWORK", help=", ".join(CASES))
    parser.add_argument("--ways", action="store_true", help="also time every segment in a whole network (minutes more)")
    parser.add_argument("--plans", type=int, metavar="N", help="plans to fit (default: the profile's own)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier measurements")
    parser.add_argument("--backend", default=USUAL[0], help="default: %(default)s")
    parser.add_argument("--precision", default=USUAL[1], help="default: %(default)s")
    arguments = parser.parse_args()
    precision = canonical_precision(arguments.precision)
    suffix = suffix_of(arguments.backend, precision)
    WORK.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.networks or CASES:
        results[name] = kept(
            name + suffix,
            lambda name=name: run_case(
                name, arguments.backend, precision, with_ways=arguments.ways, num_plans=arguments.plans
            ),
            fresh=arguments.fresh,
        )
        print_table({name: results[name]})
    earlier = RESULTS / f"prediction{suffix}.json"
    if arguments.networks and earlier.exists():
        results = {**json.loads(earlier.read_text())["results"], **results}
    results = {name: results[name] for name in CASES if name in results}
    write_record(
        f"prediction{suffix}",
        results,
        {
            "held_out": NUM_HELD_OUT,
            "threads": 1,
            "batch": 1,
            "limits": _LIMITS,
            **({"backend": arguments.backend, "precision": precision, "processor": flags()} if suffix else {}),
        },
        packages=_PACKAGES,
    )
    print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
