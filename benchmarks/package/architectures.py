"""Run the bank of architectures: trace, random solutions, train form against deploy form against ONNX Runtime.

    python benchmarks/package/architectures.py [--only NAME ...] [--jobs 2]
    python benchmarks/package/architectures.py --drops --solutions 5   # that drop layers; a record of their own

Every architecture of tests/bank gets random weights and 20 random solutions at two input sizes. Each finished one is
a line of the journal in --out, so that a stopped run goes on where it was; a change of the code that is checked, or of
the options, starts over. Writes benchmarks/results/architectures.json and docs/architectures.md once all are there,
and ends 1 where a check failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import ROOT, write_record

from tests.bank.solutions import BANK_LIMITS

PAGE = ROOT / "docs" / "architectures.md"
CHECKED = ("layerfold/graph", "layerfold/merge", "layerfold/export", "tests/bank")


def main() -> int:
    from tests.bank.architectures import BANK, find

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="these only, and no record; may be repeated")
    parser.add_argument("--solutions", type=int, default=20, help="random solutions per architecture (%(default)s)")
    parser.add_argument("--drops", action="store_true", help="random solutions that drop layers; no page")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side, one thread each (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "architectures-out", help="folder of the journal")
    args = parser.parse_args()
    chosen = [find(name).name for name in args.only] if args.only else [each.name for each in BANK]
    key = {"code": code_hash(), "solutions": args.solutions, **({"drops": True} if args.drops else {})}
    journal = Journal(args.out / "journal.jsonl", key=key)
    waiting = [name for name in chosen if name not in journal.found]
    print(f"{len(chosen) - len(waiting)} of {len(chosen)} are in {journal.path}", file=sys.stderr)
    for name, result in run_all(waiting, args.solutions, args.jobs, drops=args.drops):
        journal.add(name, result)
        print(
            f"[{len(chosen) - len(waiting) + len(journal.added)}/{len(chosen)}] {line_of(name, result)}",
            file=sys.stderr,
        )
    results = {name: journal.found[name] for name in chosen}
    failed = [name for name, result in results.items() if result["failures"]]
    for name in failed:
        for failure in results[name]["failures"][:5]:
            print(f"{name}: {failure}", file=sys.stderr)
    if not args.only:
        if not args.drops:
            page = page_of(results, args.solutions)
            PAGE.write_text(page, encoding="utf-8")
            print(page)
        settings = {
            "solutions": args.solutions,
            **asdict(BANK_LIMITS),
            "seed": 0,
            "jobs": args.jobs,
            "threads": 1,
            "onnx": "TorchScript exporter; the shipped one for an architecture's first solution; sizes in turn",
        }
        name = "architectures_drops" if args.drops else "architectures"
        write_record(
            name,
            {"failed": failed, "architectures": results},
            settings,
            packages=("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy"),
        )
    return int(bool(failed))


class Journal:
    """Finished architectures, one JSON line each; lines of another code or other options count as not there."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path, self.key = path, key
        self.found: dict[str, dict[str, Any]] = {}
        self.added: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed while it wrote
            if entry["key"] == key:
                self.found[entry["name"]] = entry["result"]

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.found[name] = result
        self.added.append(name)
        with self.path.open("a") as file:
            file.write(json.dumps({"name": name, "key": self.key, "result": result}) + "\n")


def code_hash() -> str:
    """Return a hash over the files whose change makes a result stale."""
    digest = hashlib.sha256()
    for folder in CHECKED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_all(names: list[str], solutions: int, jobs: int, *, drops: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield results as they come; a fresh process each, so that one network's memory is gone before the next."""
    # Read by glibc when a process starts: freed tensors go back to the system instead of piling up in pieces.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    with ProcessPoolExecutor(jobs, max_tasks_per_child=1) as pool:
        work = {pool.submit(partial(run_architecture, solutions=solutions, drops=drops), name): name for name in names}
        for future in as_completed(work):
            try:
                yield work[future], future.result()
            except BrokenProcessPool:  # short of memory, most likely: that says nothing about the network
                sys.exit(f"{work[future]}: its process was killed; run again with --jobs 1 and more memory free")
            except Exception as error:
                yield work[future], {"failures": [f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"]}


def run_architecture(name: str, solutions: int, *, drops: bool) -> dict[str, Any]:
    """Return what one architecture is and how its checks went."""
    import torch

    from layerfold.graph.dropping import dropped_layers
    from tests.bank.architectures import find
    from tests.bank.checks import check_architecture, prepare
    from tests.bank.solutions import random_drop_solutions, random_solutions

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, architecture = time.perf_counter(), find(name)
    prepared = prepare(architecture)
    size = architecture.sizes[0]
    net = prepared.nets[size]
    chosen = random_drop_solutions(prepared.model, net, solutions) if drops else random_solutions(net, solutions)
    exporters = ["shipped", *["quick"] * (len(chosen) - 1)]
    found = check_architecture(prepared, chosen, onnx=exporters, progress=True)
    return {
        **describe(net),
        "trace_s": trace_seconds(prepared.model, prepared.images[size]),
        "input_sizes": list(architecture.sizes),
        "note": architecture.note,
        "layers_merged_away": [
            len(net.layers) - len(net.segments_of(each.merge_pos, dropped_layers(net, each.kept_layers)))
            for each in chosen
        ],
        "layers_dropped": [len(dropped_layers(net, each.kept_layers)) for each in chosen],
        "checks": found.num_checks,
        "differences": {k: v for k, v in asdict(found).items() if isinstance(v, float)},
        "failures": found.failures,
        "wall_s": round(time.perf_counter() - began, 1),
    }


def trace_seconds(model: Any, image: Any) -> float:
    import layerfold as lf

    began = time.perf_counter()
    lf.trace_network(model, image)
    return round(time.perf_counter() - began, 3)


def describe(net: Any) -> dict[str, Any]:
    """Return the counts of a traced network, and what of it cannot be merged."""
    from layerfold.graph.counts import mergeable_share

    candidates = net.candidates(**BANK_LIMITS.shape)
    reasons = Counter(barrier.reason for barrier in net.barriers if barrier.after < len(net.layers))
    return {
        "layers": len(net.layers),
        "chains": len(net.chains),
        "residuals": len(net.residuals),
        "candidates": sum(segment.num_layers > 1 for segment in candidates),
        "macs": net.macs,
        "mergeable_share": round(mergeable_share(net, candidates), 4),
        "unmerged": dict(reasons.most_common()),
    }


def line_of(name: str, result: dict[str, Any]) -> str:
    if "checks" not in result:
        return f"{name}: FAILED, {result['failures'][0]}"
    verdict = f"{len(result['failures'])} FAILED" if result["failures"] else "passed"
    worst = ", ".join(f"{kind} {value:.1g}" for kind, value in result["differences"].items())
    return f"{name}: {result['checks']} checks, {verdict}; largest differences {worst}; {result['wall_s']} s"


def page_of(results: dict[str, dict[str, Any]], solutions: int) -> str:
    """Return docs/architectures.md."""
    ran = {name: result for name, result in results.items() if "checks" in result}
    kinds = ("float64", "float32", "onnx")
    worst = {kind: max((result["differences"][kind] for result in ran.values()), default=0.0) for kind in kinds}
    passed = sum(not result["failures"] for result in results.values())
    lines = [
        "# Architectures",
        "",
        "Written by `python benchmarks/package/architectures.py`; the record is "
        "`benchmarks/results/architectures.json`.",
        "",
        f"{passed} of {len(results)} architectures pass every check. Each has random weights and random BatchNorm "
        f"statistics, {solutions} random solutions (candidates with kernels up to {BANK_LIMITS.max_kernel}, at most "
        f"{BANK_LIMITS.max_growth:g} times the multiply-adds and {BANK_LIMITS.max_params / 1e6:.0f} million weights; "
        "random activations, at empty slots too) "
        "and two input sizes. Each solution is checked at each size for output shapes and for train form against "
        "deploy form in float64 (1e-9) and in float32 (1e-4), and at one of the sizes, in turn, for the float32 "
        "deploy form against ONNX Runtime (1e-4). Differences are relative to the largest value of the output tensor. "
        f"The largest seen are {worst['float64']:.1g}, {worst['float32']:.1g} and {worst['onnx']:.1g}.",
        "",
        "*Candidates* are segments of several layers that may become one conv. *Mergeable* is the share of the "
        "network's multiply-adds in convs that a candidate takes in. The last column counts what nothing merges "
        "across, before the head, by reason. What tracing takes stands in `benchmarks/results/merge_speed.json`, "
        "taken on an idle machine.",
        "",
        "| architecture | layers | chains | residuals | candidates | mergeable | checks passed | barriers |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, result in results.items():
        if "checks" not in result:
            lines.append(f"| {name} | | | | | | none | {result['failures'][0]} |".replace("\n", " "))
            continue
        why = "; ".join(f"{count} × {reason}" for reason, count in result["unmerged"].items()) or "nothing"
        checks = f"{max(result['checks'] - len(result['failures']), 0)} of {result['checks']}"
        lines.append(
            f"| {name} | {result['layers']} | {result['chains']} | {result['residuals']} | {result['candidates']} "
            f"| {100 * result['mergeable_share']:.0f} % | {checks} | {why} |"
        )
    notes = [f"- {name}: {result['note']}." for name, result in results.items() if result.get("note")]
    return "\n".join([*lines, "", *notes, ""])


if __name__ == "__main__":
    sys.exit(main())
