"""Every file that a command reads, damaged: no traceback, no hang, the right exit code, no other file touched.

    python benchmarks/robustness/fuzz_files.py                    # 200 mutations per file
    python benchmarks/robustness/fuzz_files.py -n 20 --only solution --seed 3 --verbose

Each run damages one good file (mutations.py) and gives it to a command that reads it, in a forked child. Ends 1 where
a run broke a promise; these are printed with what was done to the file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from file_targets import TARGETS, Target, make_more
from harness import Outcome, judge, load_everything, run_forked, snapshot
from inputs import make_inputs
from mutations import mutate
from record import RESULTS, commit, write_record


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=200, help="mutations per file (%(default)s)")
    parser.add_argument("--most-s", type=float, default=1e9, metavar="S", help="go on to the next file after so long")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose name holds this (a regular expression)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", metavar="FOLDER", help="keep the good files there, for the next time")
    parser.add_argument("--limit-s", type=float, default=60.0)
    parser.add_argument("--verbose", action="store_true", help="print every run")
    parser.add_argument("--no-record", action="store_true")
    parser.add_argument("--add", action="store_true", help="keep what the record says of files that are not tried now")
    args = parser.parse_args()
    load_everything(in_a_hurry=True)
    with tempfile.TemporaryDirectory() as name:
        folder, good = Path(name) / "work", Path(args.inputs or f"{name}/good").absolute()
        os.environ["LAYERFOLD_CACHE"] = str(good.parent / "cache")
        if not good.exists():
            good.mkdir(parents=True)
            make_inputs(good)
            make_more(good)
        shutil.copytree(good, folder, symlinks=True)
        chosen = [target for target in TARGETS if re.search(args.only, target.file) and (good / target.file).exists()]
        record = RESULTS / "fuzz_files.json"
        earlier = json.loads(record.read_text())["results"]["files"] if args.add and record.exists() else {}
        results: dict[str, dict[str, Any]] = {}
        for target in chosen:
            results[target.file] = fuzz(target, folder, good, args)
            files = earlier | results
            if not args.no_record:  # after each file: all of them take hours
                num_bad = sum(len(found["bad"]) for found in files.values())
                write_record(
                    "fuzz_files",
                    {"passed": not num_bad, "bad": num_bad, "files": files},
                    vars(args),
                    packages=("torch", "onnxruntime", "pydantic", "pillow"),
                )
    print(f"{'file':32} {'runs':>5} {'bad':>4} {'slowest':>8}  exit codes", file=sys.stderr)
    for file, found in results.items():
        codes = ", ".join(f"{code}: {count}" for code, count in found["codes"].items())
        print(f"{file:32} {found['runs']:5} {len(found['bad']):4} {found['slowest_s']:7.1f}s  {codes}", file=sys.stderr)
    return int(any(found["bad"] for found in results.values()))


def fuzz(target: Target, folder: Path, good: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Damage one file again and again; return how the commands ended."""
    rng = random.Random(f"{args.seed} {target.file}")
    codes: Counter[str] = Counter()
    bad: list[dict[str, Any]] = []
    slowest = 0.0
    pristine = snapshot(good)
    began = time.monotonic()
    for number in range(args.n):
        if time.monotonic() - began > args.most_s:
            break
        command = target.commands[number % len(target.commands)]
        way = mutate(folder / target.file, target.kind, rng)
        before = snapshot(folder)
        outcome = run_forked(command, folder, limit_s=args.limit_s)
        after = snapshot(folder)
        judge(outcome, before, after, may_change=outputs_of(command, target.file))
        codes[str(outcome.code)] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.faults or args.verbose:
            said = (outcome.err.strip().splitlines() or [""])[-1]
            print(
                f"{target.file}, {way}: {', '.join(outcome.faults) or outcome.code}: {said[:300]}\n"
                f"    layerfold {shlex.join(command)}",
                file=sys.stderr,
            )
        if outcome.faults:
            bad.append({"number": number, "way": way, "command": shlex.join(command), **facts_of(outcome)})
        restore(folder, good, pristine)
    runs = codes.total()
    print(f"{target.file}: {len(bad)} of {runs} bad", file=sys.stderr, flush=True)
    return {"runs": runs, "bad": bad, "codes": dict(codes), "slowest_s": round(slowest, 1), "commit": commit()}


def facts_of(outcome: Outcome) -> dict[str, Any]:
    return {"code": outcome.code, "faults": outcome.faults, "err": outcome.err[-2000:]}


def outputs_of(command: list[str], damaged: str) -> list[str]:
    """Return what a command may write: its outputs, and what it sets aside or makes again of the damaged file."""
    found = ["new", "out2", "cache.sqlite"]
    if command[0] == "compress":
        found.append(command[-1])
    return [*found, damaged]


def restore(folder: Path, good: Path, pristine: dict[str, str]) -> None:
    """Make the folder as it was."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if name not in pristine and not (path.is_dir() and not path.is_symlink() and (good / name).is_dir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.is_symlink() or path.exists():
                path.unlink()
    now = snapshot(folder)
    for name, digest in pristine.items():
        if now.get(name) != digest:
            place = folder / name
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            elif place.is_symlink() or place.exists():
                place.unlink()
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(good / name, place)


if __name__ == "__main__":
    sys.exit(main())
