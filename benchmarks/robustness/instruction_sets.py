"""The tests at three levels of instruction sets: what they claim must hold on any processor.

    python benchmarks/robustness/instruction_sets.py [--times 2] [--workers 2] [--levels lowest middle] [-- ARGUMENTS]
    python benchmarks/robustness/instruction_sets.py --times 1 --levels highest --add     # beside the runs on record

PyTorch, oneDNN and MKL take their kernels for the processor that they find, and another kernel adds up in another
order. Environment variables hold them to an older one. Without ARGUMENTS of pytest the whole suite is run, as ``make
test`` does. With ``--threads 2`` torch splits sums over two threads, which is another order too. The record is written
after each run, and each run says its commit: six runs take hours, and need not be made at one go. Exit 1 if a test
failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from record import RESULTS, ROOT, commit, write_record

LEVELS: dict[str, dict[str, str]] = {
    "lowest": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "middle": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "highest": {},
}
"""What the processor has is the highest: nothing is set."""

_VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_FLAG = re.compile(r"^(sse4_[12]|avx.*|fma|amx.*|asimd.*|sve.*|bf16|i8mm)$")
_PROBE = """
import torch
torch.nn.functional.conv2d(torch.ones(8, 32, 32, 32), torch.ones(64, 32, 3, 3))
print("aten", torch.backends.cpu.get_cpu_capability())
"""


def environment_of(level: str, threads: int) -> dict[str, str]:
    """Return the environment of a run at a level, whatever is set in this process."""
    kept = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    return {**kept, **LEVELS[level], "OMP_NUM_THREADS": str(threads)}


def kernels_of(level: str) -> dict[str, str]:
    """Return what PyTorch and oneDNN say that they use at a level."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env={**environment_of(level, 1), "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    onednn = re.search(r"cpu,isa:([^\n]*)", done.stdout)
    return {"aten": done.stdout.split("aten ")[-1].strip(), "onednn": onednn[1].strip() if onednn else "unknown"}


def run_tests(level: str, workers: int, threads: int, arguments: list[str]) -> dict[str, Any]:
    """Run the tests once at a level; return how many passed, and which failed."""
    at = commit()  # before the run, which takes long enough for another commit
    with tempfile.TemporaryDirectory(prefix="layerfold-") as scratch:
        report = Path(scratch) / "report.xml"
        share = ["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *share, f"--junit-xml={report}", *arguments],
            cwd=ROOT,
            env=environment_of(level, threads),
            stdout=sys.stderr,
            check=False,
        )
        seconds = time.monotonic() - began
        if not report.exists():
            sys.exit(f"error: pytest ended with {done.returncode} and wrote no report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "level": level,
        "commit": at,
        "passed": len(cases) - len(failed) - skipped,
        "failed": sorted(failed),
        "skipped": skipped,
        "seconds": round(seconds, 1),
        "exit_code": done.returncode,
    }


def processor_flags() -> list[str]:
    """Return the processor's flags that decide between kernels; none where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    line = next((each for each in lines if each.partition(":")[0].strip() in ("flags", "Features")), "")
    return sorted(flag for flag in line.partition(":")[2].split() if _FLAG.match(flag))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=2, metavar="N", help="runs at each level (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each process (default: %(default)s)")
    parser.add_argument(
        "--levels",
        nargs="+",
        choices=LEVELS,
        default=list(LEVELS),
        metavar="LEVEL",
        help=f"of {', '.join(LEVELS)} (default: all)",
    )
    parser.add_argument("--add", action="store_true", help="keep the runs that are on record, and add to them")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, behind --; the whole suite without")
    arguments = parser.parse_args()
    kernels = {level: kernels_of(level) for level in arguments.levels}
    flags = processor_flags()
    settings = {
        "workers": arguments.workers,
        "threads": arguments.threads,
        "pytest": arguments.pytest,
        "variables": LEVELS,
    }
    earlier = RESULTS / "instruction_sets.json"
    runs = json.loads(earlier.read_text())["results"]["runs"] if arguments.add and earlier.exists() else []
    made = []
    for level in arguments.levels * arguments.times:
        made.append({**run_tests(level, arguments.workers, arguments.threads, arguments.pytest), **kernels[level]})
        runs.append(made[-1])
        write_record(
            "instruction_sets",
            {"flags": flags, "runs": runs},
            settings,
            packages=("torch", "numpy", "onnxruntime", "openvino", "pytest"),
        )
    row = "{:<9}{:<10}{:<36}{:>7}{:>8}{:>9}{:>9}"
    print("\nprocessor flags:", " ".join(flags) or "unknown")
    print(row.format("level", "ATen", "oneDNN", "passed", "failed", "skipped", "seconds"))
    for run in runs:
        print(
            row.format(
                run["level"],
                run["aten"],
                run["onednn"][:34],
                run["passed"],
                len(run["failed"]),
                run["skipped"],
                run["seconds"],
            )
        )
    return int(any(run["failed"] or run["exit_code"] for run in made))


if __name__ == "__main__":
    sys.exit(main())
