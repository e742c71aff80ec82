"""`layerfold compress` killed at random moments and started again until it is done, against one left alone.

    python benchmarks/robustness/kill_compress.py [--kills 50] [--demo] [--seed 0]

SIGKILL, SIGTERM and SIGINT in turn, at moments drawn over the time that an undisturbed run takes; a life that ends
before its signal is not counted, and a run that is done is begun again in a new folder. All runs share the cache of
measurements, which the undisturbed one has filled, so that tables can be the same to the byte. Checked:

- what a finished step wrote stays the same to the byte through all later kills;
- tables at the end are those of the undisturbed run to the byte, and so is the choice of the solution (the plan that
  is measured again in each run decides by milliseconds that are never the same twice: where it was another, that is
  counted apart);
- every life ends by its signal with one line at most, no lock or part of a file is left, and the last one with 0.

Ends 1 where that is not so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from harness import load_everything, run_forked, start_forked
from inputs import SKELETONS, make_inputs
from record import write_record

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2)}
_TABLES = ("latency.csv", "importance.csv")
_CHOSEN = ("act_pos", "merge_pos", "kept_layers")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--demo", action="store_true", help="`layerfold demo --quick` instead of a tiny network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    load_everything()
    command = ["demo", "--quick", "-o", "out"] if args.demo else ["compress", *SKELETONS["compress",]]
    with tempfile.TemporaryDirectory() as name:
        os.environ["LAYERFOLD_CACHE"] = f"{name}/cache"
        folder = Path(name) / "work"
        folder.mkdir()
        make_inputs(folder)
        results: dict[str, Any] = {}
        for results in kill_and_restart(command, folder, args.kills, random.Random(args.seed)):
            if not args.no_record:  # after each run: all of them take an hour
                write_record("kill_compress", results, vars(args), packages=("torch", "onnxruntime", "filelock"))
    print(f"{results['kills']} kills in {results['runs']} runs, faults: {results['faults'] or 'none'}", file=sys.stderr)
    return int(bool(results["faults"]))


def kill_and_restart(command: list[str], folder: Path, kills: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield after each run what the undisturbed and all killed ones so far left behind, compared."""
    done = run_forked(command, folder, limit_s=3600)
    if done.code != 0:
        sys.exit(f"error: {done.err}")
    (folder / "out").rename(folder / "whole")
    began = time.monotonic()
    again = run_forked(command, folder, limit_s=3600)  # with a full cache, as the killed ones have
    whole_s = time.monotonic() - began
    faults = [] if again.code == 0 else [f"a second run ended with {again.code}"]
    faults += compared(folder / "whole", folder / "out")
    lives: list[dict[str, Any]] = []
    runs = other_solutions = killed = 0
    while killed < kills:
        shutil.rmtree(folder / "out", ignore_errors=True)
        runs += 1
        seen: dict[str, str] = {}
        is_done = False
        while not is_done:
            is_last = killed >= kills
            sign = SIGNALS[len(lives) % len(SIGNALS)]
            wait_s = None if is_last else rng.uniform(0, 0.8 * whole_s)
            life = one_life(command, folder, sign, wait_s)
            lives.append(life)
            killed = sum(each["is_killed"] for each in lives)
            print(f"\r{killed} of {kills} kills, run {runs}", end="", file=sys.stderr, flush=True)
            is_done = life["code"] == 0
            if not is_done and not life["is_killed"]:
                faults.append(f"a life ended by itself: {life}")
                break
            faults += [f"{fault} ({life})" for fault in life["faults"]]
            kept = finished_outputs(folder / "out")
            faults += [f"{each} was changed after its step was done" for each in seen if kept.get(each) != seen[each]]
            seen = kept
        if is_done:
            faults += compared(folder / "whole", folder / "out")
            other_solutions += solution_of(folder / "whole") != solution_of(folder / "out")
        yield {
            "kills": killed,
            "runs": runs,
            "undisturbed_s": round(whole_s, 1),
            "other_solutions": other_solutions,
            "faults": list(faults),
            "lives": list(lives),
        }
    print(file=sys.stderr)


def one_life(command: list[str], folder: Path, sign: signal.Signals, wait_s: float | None) -> dict[str, Any]:
    """Run until done or until the signal comes; say how it ended."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = start_forked(command, folder, out.fileno(), err.fileno())
        began = time.monotonic()
        code, is_killed = None, False
        while code is None:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
            elif wait_s is not None and not is_killed and time.monotonic() - began >= wait_s:
                os.kill(child, sign)
                is_killed = True
            elif time.monotonic() - began > 3600:
                os.kill(child, signal.SIGKILL)
            else:
                time.sleep(0.005)
        err.seek(0)
        said = err.read().decode("utf-8", "replace")
    is_killed = is_killed and code != 0
    faults = []
    if is_killed and code not in _CODES[sign]:
        faults.append(f"ended with {code}")
    if "Traceback" in said or "bug in layerfold" in said:
        faults.append("traceback")
    left = [path.name for path in (folder / "out").rglob("*") if ".part" in path.name]
    if left and sign != signal.SIGKILL:  # nothing can be cleared up after SIGKILL
        faults.append(f"left {left}")
    return {
        "signal": sign.name,
        "at_s": wait_s and round(wait_s, 3),
        "code": code,
        "is_killed": is_killed,
        "faults": faults,
        "said": said[-200:],
    }


def finished_outputs(out: Path) -> dict[str, str]:
    """Return name -> digest of what finished steps have written."""
    try:
        steps = json.loads((out / "run.json").read_text())["steps"]
    except FileNotFoundError:
        return {}
    names = [each for step in steps.values() for each in step["outputs"]]
    return {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest() if (out / name).is_file() else "missing"
        for name in names
    }


def compared(whole: Path, out: Path) -> list[str]:
    faults = [
        f"{name} is not that of the undisturbed run"
        for name in _TABLES
        if (whole / name).read_bytes() != (out / name).read_bytes()
    ]
    return faults + [f"{each.name} is missing" for each in whole.iterdir() if not (out / each.name).exists()]


def solution_of(out: Path) -> dict[str, Any]:
    """Return what a run has chosen, without the milliseconds beside it, which differ from run to run."""
    found = json.loads((out / "solution.json").read_text())
    return {name: found[name] for name in _CHOSEN}


if __name__ == "__main__":
    sys.exit(main())
