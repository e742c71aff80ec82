"""What filling a latency table costs and how well it repeats, against the published protocol, in one run.

    python benchmarks/latency/profile_cost.py [--share 0.1] [--entry-cap-s 1.5] [--default]

The table is MobileNetV2's (width 1, 224 px, batch 1) without its stem and its last conv: 515 candidates. The published
protocol times every entry alone with 2,000 warm-up passes and then 1,000 timed ones, each by itself, and keeps their
mean; equal shapes are timed again each time they occur, and nothing is skipped.

What is done, in this order: ours fills the whole table; the published protocol times the sample; ours fills it
again, with nothing kept; the published protocol times the sample again. The sample is a tenth of the entries: these are
ordered by multiply-adds and cut into 52 equal parts, and one is drawn at random from each. With ``--default``
the default method (segments inside the network) fills the table once too, for its cost.

*Cost*: wall time of ours, against the published protocol's: of each sampled entry the time of a pass, times 3,000,
times the number of entries over the number sampled. A pass is timed by running the protocol itself; for an entry that
would take longer than ``--entry-cap-s`` both phases are shortened in proportion and what is missing is added. Merged
kernels of the 515 reach 255 x 255, one pass of which takes seconds to minutes. Ours does not measure what cannot be
faster than the layers it replaces, and here the published protocol is not made to either: such entries count as nothing
in its time, which favours it. What it would take with them, at the lower bound of their latency, is printed beside.

*Spread*: each protocol's two values of an entry should be equal; the spread is the median of |a - b| / mean(a, b)
over the sampled entries that ours measured with a target (it skips those plainly too slow to be used, and times some in
three passes; both are counted here). Ends 1 unless ours costs at most a tenth at no larger spread.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import write_record

EXCLUDED = ("conv_stem", "conv_head")
CANDIDATES = 515
WARMUPS, RUNS = 2000, 1000


@dataclass(frozen=True, kw_only=True)
class Published:
    """One entry by the published protocol: its mean and what it took, or would have taken uncut."""

    mean_ms: float
    uncut_s: float
    is_cut: bool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=0.1, help="of the entries that the published protocol times")
    parser.add_argument("--entry-cap-s", type=float, default=1.5, help="longest that it may take for one of them")
    parser.add_argument("--default", action="store_true", help="fill by the default method too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    results = measure(args.share, args.entry_cap_s, args.seed, has_default=args.default)
    write_record("profile_cost", results, vars(args), packages=("torch", "timm", "onnxruntime"))
    return int(not results["passed"])


def measure(share: float, entry_cap_s: float, seed: int, *, has_default: bool) -> dict[str, Any]:
    """Fill the table twice by each protocol, in turns."""
    import torch

    import layerfold as lf
    from layerfold.profiler import get_backend
    from layerfold.profiler.graphs.segment import segment_onnx

    loaded = lf.load_model("timm:mobilenetv2_100")
    net = lf.trace_network(loaded.module, torch.zeros(1, 3, 224, 224), exclude=EXCLUDED)
    candidates = net.candidates(max_kernel=1000)
    if len(candidates) != CANDIDATES:
        sys.exit(f"error: {len(candidates)} candidates, expected {CANDIDATES}")
    backend = get_backend("onnxruntime", threads=1)
    sample = stratified(candidates, max(1, math.ceil(share * len(candidates))), seed)

    def ours(method: str) -> tuple[Any, float]:
        began = time.perf_counter()
        table = lf.profile_network(loaded.module, net, backend, cache=False, method=method, candidates=candidates)
        return table, time.perf_counter() - began

    def published(skipped: set[tuple[int, int]]) -> list[Published | None]:
        found: list[Published | None] = []
        for segment in sample:
            if (segment.start, segment.end) in skipped:
                found.append(None)
                continue
            runner = backend.compile(segment_onnx(segment))
            try:
                found.append(published_protocol(runner.run, entry_cap_s))
            finally:
                runner.close()
            say(f"published protocol: {len(found)}/{len(sample)}")
        return found

    tables, ours_s, theirs = [], [], []
    skipped: set[tuple[int, int]] | None = None
    for _ in range(2):
        table, seconds = ours("isolated")
        tables.append(table)
        ours_s.append(seconds)
        if skipped is None:
            skipped = {(entry.start, entry.end) for entry in table.entries if entry.runs == 0}
        theirs.append(published(skipped))
    careful = [
        index
        for index, segment in enumerate(sample)
        if theirs[0][index] and all(table.entry(segment.start, segment.end).runs > 3 for table in tables)
    ]
    both = [(tables[0].entry(s.start, s.end).latency_ms, tables[1].entry(s.start, s.end).latency_ms) for s in sample]
    ours_spread = spread([both[index] for index in careful])
    theirs_spread = spread([(theirs[0][index].mean_ms, theirs[1][index].mean_ms) for index in careful])
    uncut = [index for index in careful if not (theirs[0][index].is_cut or theirs[1][index].is_cut)]
    scale = len(candidates) / len(sample)
    published_s = scale * statistics.fmean(sum(each.uncut_s for each in one if each) for one in theirs)
    slow = [s for s, each in zip(sample, theirs[0], strict=True) if each is None]
    bounds_ms = [tables[0].entry(s.start, s.end).latency_ms for s in slow]
    with_slow_s = published_s + scale * sum(bounds_ms) / 1e3 * (WARMUPS + RUNS)
    results = {
        "candidates": len(candidates),
        "distinct_shapes": len({segment.signature for segment in candidates}),
        "sampled": len(sample),
        "sampled_and_skipped": len(bounds_ms),
        "sampled_and_cut": sum(each.is_cut for each in theirs[0] if each),
        "ours_s": [round(each, 1) for each in ours_s],
        "published_s_scaled": round(published_s, 1),
        "published_s_scaled_with_the_slow_ones_at_their_bound": round(with_slow_s),
        "cost_ratio": round(statistics.fmean(ours_s) / published_s, 4),
        "entries_skipped_as_plainly_slow": [sum(e.runs == 0 for e in table.entries) for table in tables],
        "entries_timed_in_three_passes": [sum(e.runs == 3 for e in table.entries) for table in tables],
        "compared_for_spread": len(careful),
        "ours_spread_median": ours_spread[0],
        "ours_spread_p90": ours_spread[1],
        "published_spread_median": theirs_spread[0],
        "published_spread_p90": theirs_spread[1],
        "of_entries_run_uncut": {
            "entries": len(uncut),
            "ours_spread_median": spread([both[index] for index in uncut])[0],
            "published_spread_median": spread(
                [(theirs[0][index].mean_ms, theirs[1][index].mean_ms) for index in uncut]
            )[0],
        },
        "measurement": [dict(table.provenance.measurement) for table in tables],
    }
    if has_default:
        default_s = ours("plans")[1]
        results["default_method"] = {"seconds": round(default_s, 1), "cost_ratio": round(default_s / published_s, 4)}
    results["passed"] = results["cost_ratio"] <= 0.1 and ours_spread[0] <= theirs_spread[0]
    return results


def stratified(candidates: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Return ``count`` segments, one drawn from each of as many equal parts of the candidates by multiply-adds."""
    rng = random.Random(seed)
    ordered = sorted(candidates, key=lambda segment: segment.macs)
    bounds = [round(i * len(ordered) / count) for i in range(count + 1)]
    chosen = [ordered[rng.randrange(bounds[i], bounds[i + 1])] for i in range(count)]
    rng.shuffle(chosen)
    return chosen


def published_protocol(run: Callable[[], object], cap_s: float) -> Published:
    """Time an entry with 2,000 and 1,000 passes, or with as large a share of them as fits into ``cap_s``."""
    began_ns = time.perf_counter_ns()
    for _ in range(3):
        run()
    pass_s = (time.perf_counter_ns() - began_ns) / 3e9
    part = min(cap_s / (pass_s * (WARMUPS + RUNS)), 1.0)
    warmups, runs = max(round(part * WARMUPS), 2), max(round(part * RUNS), 3)
    began_ns = time.perf_counter_ns()
    for _ in range(warmups):
        run()
    warmed_ns = time.perf_counter_ns()
    passes_ns = []
    for _ in range(runs):
        at_ns = time.perf_counter_ns()
        run()
        passes_ns.append(time.perf_counter_ns() - at_ns)
    ended_ns = time.perf_counter_ns()
    uncut_s = ((warmed_ns - began_ns) / warmups * WARMUPS + (ended_ns - warmed_ns) / runs * RUNS) / 1e9
    return Published(mean_ms=statistics.fmean(passes_ns) / 1e6, uncut_s=uncut_s, is_cut=part < 1)


def spread(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return median and 90th percentile of |a - b| / mean(a, b)."""
    differences = sorted(2 * abs(a - b) / (a + b) for a, b in pairs)
    if not differences:
        return math.nan, math.nan
    return round(statistics.median(differences), 5), round(differences[int(0.9 * (len(differences) - 1))], 5)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
