"""Every output of a finished `compress` truncated, flipped, edited or deleted in turn: made again, or named.

    python benchmarks/robustness/damage.py [--only latency] [--no-record]

After each damage the same command is run once more. It must end with 0 and a line on stderr that names the file, or
with 2 and an error line that does; afterwards tables and solution are the same to the byte (but for dates and what is
measured again), and a third run finds nothing to do. Ends 1 where that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from harness import judge, load_everything, run_forked, snapshot
from inputs import SKELETONS, make_inputs
from record import write_record

COMMAND = ["compress", *SKELETONS["compress",]]
DRAWN = ("report.html", "frontier.png", "time.png", "prediction.png", "network.svg")
"""Made in every run from the results of the steps, so that no line need say so."""
SAME = ("latency.csv", "importance.csv", "frontier.csv", "solution.json")
"""Must be the same to the byte where the step that makes them was not done again."""


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _edit(path: Path) -> None:
    """Change a digit, as a person might: the file stays what it is."""
    content = path.read_bytes()
    at = next((index for index, byte in enumerate(content) if byte in b"123456789"), 0)
    path.write_bytes(content[:at] + (b"9" if content[at : at + 1] != b"9" else b"8") + content[at + 1 :])


def _instead(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing-there")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "flip": _flip,
    "edit": _edit,
    "delete": lambda path: path.unlink(),
    "another's": lambda path: path.write_bytes(b"{}\n"),
    "link to nothing": _instead,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="outputs whose name holds this")
    parser.add_argument("--damages", nargs="+", choices=DAMAGES, default=list(DAMAGES))
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    load_everything()
    with tempfile.TemporaryDirectory() as name:
        os.environ["LAYERFOLD_CACHE"] = f"{name}/cache"
        good, folder = Path(name) / "good", Path(name) / "work"
        good.mkdir()
        make_inputs(good)
        done = run_forked(COMMAND, good, limit_s=600)
        if done.code != 0:
            sys.exit(f"error: {done.err}")
        outputs = [each.name for each in sorted((good / "out").iterdir()) if args.only in each.name]
        found = [
            {"output": output, "damage": damage, **damaged(output, damage, good, folder)}
            for output in outputs
            for damage in args.damages
        ]
    bad = [each for each in found if each["faults"]]
    for each in bad:
        print(f"{each['output']}, {each['damage']}: {'; '.join(each['faults'])}: {each['said']}", file=sys.stderr)
    print(f"{len(found)} damages, {len(bad)} bad", file=sys.stderr)
    if not args.no_record:
        write_record(
            "damage",
            {"passed": not bad, "damages": len(found), "found": found},
            vars(args),
            packages=("torch", "onnxruntime"),
        )
    return int(bool(bad))


def damaged(output: str, damage: str, good: Path, folder: Path) -> dict[str, Any]:
    """Damage one output of a copy, run again, and say what went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder, symlinks=True)
    place = folder / "out" / output
    before = snapshot(folder)
    DAMAGES[damage](place)
    if snapshot(folder) == before:
        return {"code": 0, "faults": [], "said": "nothing to change"}
    outcome = run_forked(COMMAND, folder)
    judge(outcome, before, snapshot(folder), may_change=["out"])
    said = " ".join(outcome.err.split())
    faults = list(outcome.faults)
    if outcome.code not in (0, 2):
        faults.append(f"exit code {outcome.code}")
    if (
        output not in said
        and output not in DRAWN
        and not (output == "run.json" and damage in ("delete", "link to nothing"))
    ):
        faults.append("does not name the file")
    if outcome.code == 0:
        faults += compared(good / "out", folder / "out", output)
        third = run_forked(COMMAND, folder)
        if third.code != 0 or "again" in third.err:
            faults.append(f"not healed: {third.code} {third.err[-200:]}")
    return {"code": outcome.code, "faults": faults, "said": said[-300:]}


def compared(good: Path, now: Path, output: str) -> list[str]:
    """Return what is not as it was: every file is there, and those that need not be made again are the same."""
    faults = [f"{each.name} is missing" for each in good.iterdir() if not (now / each.name).exists()]
    steps = json.loads((now / "run.json").read_text())["steps"]
    before = json.loads((good / "run.json").read_text())["steps"]
    for name, step in before.items():
        if steps.get(name, {}).get("date") == step["date"]:  # not done again
            faults += [
                f"{each} differs though {name!r} was not done again"
                for each in step["outputs"]
                if (good / each).read_bytes() != (now / each).read_bytes()
            ]
    # Tables come from the cache of measurements and from seeds: again the same.
    faults += [
        f"{each} differs"
        for each in SAME
        if (good / each).read_bytes() != (now / each).read_bytes()
        and not (each in ("frontier.csv", "solution.json") and was_measured_again(steps, before))
    ]
    return faults


def was_measured_again(steps: dict[str, Any], before: dict[str, Any]) -> bool:
    """Say whether plans were measured once more: their milliseconds are never the same twice."""
    return bool(steps["solve and verify"]["date"] != before["solve and verify"]["date"])


if __name__ == "__main__":
    sys.exit(main())
