"""Time tracing of every architecture of the bank, and building and merging of MobileNetV2 and ResNet-152.

    python benchmarks/package/merge_speed.py [--only NAME ...]

At the size that each network is used at. Merging is timed for five random solutions, equivalence gate included, and
set against one forward pass of the original in the same process. Ends 1 where a limit is broken.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import peak_memory_mib, write_record

from tests.bank.solutions import BANK_LIMITS

MERGE_LIMITS_S = {"torchvision:mobilenet_v2": 1.0, "timm:mobilenetv2_100": 1.0, "torchvision:resnet152": 10.0}
TRACE_LIMIT_S = 5.0
SIZES = {"torchvision:inception_v3": 299, "benchmarks:resnet20": 32}
USUAL_SIZE = 224


def main() -> int:
    import torch

    from tests.bank.architectures import BANK, find

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="these only, and no record; may be repeated")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = [find(name).name for name in args.only] if args.only else [each.name for each in BANK]
    traces, merges = {}, {}
    for number, name in enumerate(names, start=1):
        traces[name] = time_tracing(name)
        note = f"[{number}/{len(names)}] {name}: traced in {traces[name]['trace_s']} s"
        if name in MERGE_LIMITS_S:
            merges[name] = time_merging(name)
            note += f", merged in {merges[name]['build_and_merge_s_worst']} s at most"
        print(note, file=sys.stderr)
    slow = [name for name, found in traces.items() if "error" in found or found["trace_s"] >= TRACE_LIMIT_S]
    slow += [name for name, found in merges.items() if found["build_and_merge_s_worst"] >= MERGE_LIMITS_S[name]]
    results = {"over_a_limit": slow, "merging": merges, "tracing": traces, "peak_memory_mib": round(peak_memory_mib())}
    if not args.only:
        settings = {
            "threads": 1,
            "clock": "processor time",
            "batch": 1,
            "sizes": {"default": USUAL_SIZE, **SIZES},
            **asdict(BANK_LIMITS),
            "limits_s": {"trace": TRACE_LIMIT_S, **MERGE_LIMITS_S},
        }
        write_record("merge_speed", results, settings, packages=("torch", "torchvision", "timm", "numpy"))
    for name in slow:
        print(f"over its limit: {name}", file=sys.stderr)
    return int(bool(slow))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result: processor time of this one thread, since other jobs would stretch the clock's."""
    began = time.process_time()
    result = work()
    return round(time.process_time() - began, 3), result


def time_tracing(name: str) -> dict[str, Any]:
    """Return the seconds of the first call, and of one forward pass, for scale."""
    import torch

    import layerfold as lf
    from tests.bank.architectures import find

    model, size = find(name).make().eval(), SIZES.get(name, USUAL_SIZE)
    image = torch.zeros(1, 3, size, size)
    with torch.no_grad():
        forward_s, _ = timed(lambda: model(image))
    try:
        trace_s, net = timed(lambda: lf.trace_network(model, image))
        candidates_s, _ = timed(lambda: net.candidates(**BANK_LIMITS.shape))
    except lf.LayerfoldError as error:
        return {"trace_s": float("nan"), "error": str(error)}
    return {"trace_s": trace_s, "candidates_s": candidates_s, "forward_s": forward_s, "layers": len(net.layers)}


def time_merging(name: str) -> dict[str, Any]:
    """Return the seconds of build_train_form and merge_network, the worst and the median of five random solutions."""
    import torch

    import layerfold as lf
    from tests.bank.architectures import find
    from tests.bank.solutions import random_solutions
    from tests.bank.weights import randomise

    torch.manual_seed(0)
    model, image = find(name).make(), torch.randn(1, 3, USUAL_SIZE, USUAL_SIZE)
    randomise(model, image)
    net = lf.trace_network(model, image)
    with torch.no_grad():
        forward_s = statistics.median(timed(lambda: model(image))[0] for _ in range(5))
    build, merge, away = [], [], []
    for solution in random_solutions(net, 5):
        build_s, student = timed(lambda solution=solution: lf.build_train_form(model, net, solution))  # type: ignore[misc]
        merge_s, _ = timed(lambda student=student: lf.merge_network(student))  # type: ignore[misc]
        build.append(build_s)
        merge.append(merge_s)
        away.append(len(net.layers) - len(net.segments_of(solution.merge_pos)))
    both = [one + other for one, other in zip(build, merge, strict=True)]
    return {
        "build_s": build,
        "merge_s": merge,
        "layers_merged_away": away,
        "forward_s": forward_s,
        "build_and_merge_s_worst": round(max(both), 3),
        "build_and_merge_s_median": round(statistics.median(both), 3),
        "worst_in_forward_passes": round(max(both) / forward_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
