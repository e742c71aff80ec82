"""Every command that writes, on a disk that is full after so many bytes: the old files stay, one line, exit 1.

    python benchmarks/robustness/disk_full.py                 # 12 moments per command
    python benchmarks/robustness/disk_full.py -n 3 --only solve

The files lie on a small file system in memory (tmpfs), filled but for a part of what the command writes, so that each
of its writes is the one that fails in turn. Where none can be mounted, the kernel's limit on the size of a file stands
in for it. With room again the same command ends well. Ends 1 where a run broke a promise.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from harness import Outcome, judge, load_everything, run_forked, snapshot
from inputs import MODEL, SKELETONS, make_inputs
from record import write_record

_MIB = 1 << 20
_SIZE_MIB = 64
_QUICK = ["--cap-s", "0.01", "--target", "0.5", "--quiet"]
_SOLVE = SKELETONS["solve",]
COMMANDS: dict[str, list[str]] = {
    "profile": ["profile", *SKELETONS["profile",], "--summaries", "new.json"],
    "importance": ["importance", *SKELETONS["importance",]],
    "solve": ["solve", *_SOLVE, "--pth", "new.pth", "--frontier", "frontier.csv", "--plot", "new.png"],
    "search": ["search", *SKELETONS["search",], "--weights-out", "new.safetensors"],
    "inspect": ["inspect", *SKELETONS["inspect",]],
    "verify": [
        "verify",
        *MODEL,
        "--solution",
        "solution.json",
        *_QUICK,
        "--latency",
        "latency.csv",
        "--plot",
        "new.png",
    ],
    "finetune": ["finetune", *SKELETONS["finetune",], "--save-both"],
    "merge": ["merge", *SKELETONS["merge",], "--onnx", "new.onnx"],
    "export": ["export", *SKELETONS["export",]],
    "compare": ["compare", *SKELETONS["compare",], "--plot", "new.png"],
    "tables merge": ["tables", "merge", *SKELETONS["tables", "merge"]],
    "tables plot": ["tables", "plot", *SKELETONS["tables", "plot"]],
    "compress": ["compress", *SKELETONS["compress",]],
}
_STARTS_AGAIN = ("compress",)
"""Commands that go on in their folder: with ``--overwrite`` they would remove what is there first."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", type=int, default=12, help="moments per command (%(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="commands whose name holds this")
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    load_everything()
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as fill:
        os.environ["LAYERFOLD_CACHE"] = f"{name}/cache"
        good = Path(name) / "good"
        good.mkdir()
        make_inputs(good)
        results = {
            each: on_a_full_disk(command, good, Path(name) / "disk/work", fill, args.n, goes_on=each in _STARTS_AGAIN)
            for each, command in COMMANDS.items()
            if args.only in each
        }
        way = fill.__name__
    for each, found in results.items():
        print(f"{each:14} {found['runs']:3} runs, {len(found['bad'])} bad, codes {found['codes']}", file=sys.stderr)
    bad = sum(len(found["bad"]) for found in results.values())
    if not args.no_record:
        write_record(
            "disk_full",
            {"passed": not bad, "bad": bad, "way": way, "commands": results},
            vars(args),
            packages=("torch", "safetensors", "matplotlib"),
        )
    return int(bad > 0)


def on_a_full_disk(
    command: list[str], good: Path, folder: Path, fill: Callable[[int], Any], count: int, *, goes_on: bool
) -> dict[str, Any]:
    """Run a command with room for 0, 1/n, 2/n, ... of what it writes; return what went wrong."""
    codes: list[int | None] = []
    bad: list[dict[str, Any]] = []
    again = command if goes_on else [*command, "--overwrite"]
    fresh(folder, good)
    before = snapshot(folder)
    done = run_forked(command, folder, limit_s=300)
    if done.code != 0:
        sys.exit(f"error: layerfold {shlex.join(command)}: {done.err}")
    made = {name for name, digest in snapshot(folder).items() if before.get(name) != digest}
    sizes = sum((folder / name).stat().st_size + 4096 for name in made)
    for moment in range(count):
        fresh(folder, good)
        if not goes_on:  # there are old files to be kept; of another run, so that new ones would differ
            for name in made:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(b"old\n" * 2000)
        before = snapshot(folder)
        with fill(sizes * moment // count):
            outcome = run_forked(again, folder, limit_s=120)
        after = snapshot(folder)
        judge(outcome, before, after, may_change=made if goes_on else ())
        codes.append(outcome.code)
        if outcome.code == 0:  # the sizes are estimates: all of it may have fitted
            outcome.faults = [each for each in outcome.faults if not each.startswith(("changed", "made"))]
        elif outcome.code == 1:
            outcome.faults = [each for each in outcome.faults if not is_whole(each, before, made)]
        else:
            outcome.faults.append(f"exit code {outcome.code}, expected 1")
        left = [name for name in after if ".part" in name or name.endswith(".partial")]
        outcome.faults += [f"left {name}" for name in left]
        last = run_forked(again, folder, limit_s=120)
        if last.code != 0:
            outcome.faults.append(f"with room again: {last.code}: {last.err[-300:]}")
        if outcome.faults:
            bad.append({"moment": moment, **facts_of(outcome)})
            print(f"{shlex.join(again)}: {outcome.faults}: {outcome.err[-300:]}", file=sys.stderr)
    return {"runs": count, "bytes": sizes, "codes": codes, "bad": bad}


def is_whole(fault: str, before: dict[str, str], made: set[str]) -> bool:
    """Say whether a change is that of a file that was written whole before the one that failed, or a step's scratch."""
    name = fault.partition(" ")[2].strip("'")
    return name in made or (name not in before and name.endswith((".checkpoint", ".journal", ".lock", ".log.csv")))


def facts_of(outcome: Outcome) -> dict[str, Any]:
    return {"code": outcome.code, "faults": outcome.faults, "err": outcome.err[-1000:]}


def fresh(folder: Path, good: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder, symlinks=True)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[int], Any]]:
    """Yield what leaves so many bytes free while a block runs."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m", "tmpfs", str(place)]
    is_mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0

    @contextlib.contextmanager
    def filled(free: int) -> Iterator[None]:
        filler = place / "filler"
        room = os.statvfs(place)
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(room.f_bavail * room.f_frsize - free, 1))
        try:
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def limited(free: int) -> Iterator[None]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(free // 4, 1), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        yield filled if is_mounted else limited
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(place)], check=False)


if __name__ == "__main__":
    sys.exit(main())
