"""Run a command line in a forked child, and judge how it ended: shared by the fuzzers.

A fork of a process that has loaded torch already runs a command in a tenth of a second instead of three.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CODES = (0, 1, 2, 3, 4, 130)
"""What README.md says a command may end with."""
LONGEST_LINE = 1000
_RAW = re.compile("[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]")
_ERROR = "layerfold: error: "
_IDLE_S = 10.0


@dataclass(kw_only=True)
class Outcome:
    """How one command line ended.

    Attributes:
        code: exit code; None where it was still running at the limit.
        faults: what of it breaks the promises; nothing where all is well.
    """

    arguments: list[str]
    code: int | None
    out: str
    err: str
    seconds: float
    faults: list[str] = field(default_factory=list)


def load_everything(*, in_a_hurry: bool = False) -> None:
    """Import what commands import, so that each fork starts at once; no threads are started.

    Args:
        in_a_hurry: let measurements settle sooner, for runs that ask how commands end and not how fast a network is.
    """
    import onnx  # noqa: F401
    import timm  # noqa: F401
    import torch

    import layerfold.export
    import layerfold.pipeline
    import layerfold.search  # noqa: F401

    torch.set_num_threads(1)
    _export_once()
    if in_a_hurry:
        _measure_in_a_hurry()
    gc.collect()
    gc.freeze()  # else each fork copies the pages of all that is here when it looks for garbage


def _export_once() -> None:
    """Do in this process what the exporter otherwise does in every fork: most of what a run of `compress` takes."""
    import torch
    from torch.onnx._internal.exporter import _registration

    from layerfold.export import export_onnx

    registry = _registration.ONNXRegistry
    kept = functools.cache(registry.from_torchlib)  # reads the source of all operators, at each export
    registry.from_torchlib = staticmethod(kept)  # type: ignore[method-assign,assignment]
    export_onnx(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU()), torch.zeros(1, 3, 4, 4))


def _measure_in_a_hurry() -> None:
    """Cap what a measurement takes: on a machine at other work it waits for quiet, which is most of a run's time."""
    from layerfold.profiler.timing.measurement import MeasurePolicy

    def hurry(policy: MeasurePolicy) -> None:
        object.__setattr__(policy, "target", max(policy.target, 0.1))
        object.__setattr__(policy, "cap_s", min(policy.cap_s, 0.05))
        object.__setattr__(policy, "warmup_cap_s", min(policy.warmup_cap_s, 0.05))

    def checked_and_hurried(policy: MeasurePolicy) -> None:
        check(policy)
        hurry(policy)

    check = MeasurePolicy.__post_init__
    MeasurePolicy.__post_init__ = checked_and_hurried  # type: ignore[method-assign]
    for name, module in list(sys.modules.items()):  # policies made at import
        for value in list(vars(module).values()) if name.startswith("layerfold.") else ():
            if isinstance(value, MeasurePolicy):
                hurry(value)


def run_forked(arguments: Sequence[str], folder: Path, *, limit_s: float = 60.0) -> Outcome:
    """Run ``layerfold ARGUMENTS`` in ``folder`` and return how it ended; the child's whole group ends with it.

    Past ``limit_s`` it counts as hanging, once it has used that much of the processor, or none for a while.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.monotonic()
        child = start_forked(arguments, folder, out.fileno(), err.fileno())
        code = _wait(child, limit_s)
        _end_group(child)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(4 << 20).decode("utf-8", "replace"))
    return Outcome(arguments=list(arguments), code=code, out=texts[0], err=texts[1], seconds=time.monotonic() - began)


def start_forked(arguments: Sequence[str], folder: Path, out: int, err: int) -> int:
    """Start ``layerfold ARGUMENTS`` in ``folder``, its output going to two open files; return the child's number."""
    child = os.fork()
    if child == 0:
        _be_the_program(list(arguments), folder, out, err)
    return child


def _be_the_program(arguments: list[str], folder: Path, out: int, err: int) -> None:
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(out, 1)
        os.dup2(err, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from layerfold.cli import main
        from layerfold.cli._failures import quieten_libraries

        quieten_libraries()
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait(child: int, limit_s: float) -> int | None:
    """Return the exit code, or None for a child that was ended.

    On a machine that does much else, a command at work is no hang: past the limit a child is ended once its processes
    have used that much of the processor, or none of it for a while.
    """
    began = looked = time.monotonic()
    used_s = 0.0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if now - began > limit_s and now - looked > _IDLE_S:
            before_s, used_s, looked = used_s, _processor_s(child), now
            if used_s > limit_s or used_s - before_s < 0.05 or now - began > 20 * limit_s:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
        time.sleep(0.01)


def _processor_s(group: int) -> float:
    """Return the seconds of the processor that the processes of a group have used."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def _end_group(child: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)


def snapshot(folder: Path, *, without: Iterable[str] = ("cache",)) -> dict[str, str]:
    """Return path -> digest of every file below a folder, but for some of its own folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in without or "__pycache__" in name:
            continue
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def judge(outcome: Outcome, before: dict[str, str], after: dict[str, str], *, may_change: Iterable[str] = ()) -> None:
    """Fill in an outcome's faults.

    Args:
        outcome: of a run.
        before, after: snapshots of its folder.
        may_change: files that it may write: those named as outputs, and what begins with such a name.
    """
    add = outcome.faults.append
    if outcome.code is None:
        add("hangs")
        return
    if "Traceback (most recent call last)" in outcome.err:
        add("traceback")
    if "this is a bug in layerfold" in outcome.err:
        add("unforeseen")
    if outcome.code not in CODES:
        add(f"exit code {outcome.code}")
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith(_ERROR)]
    is_help = any(line.startswith("usage: ") for line in lines)  # shown where there are no arguments
    if outcome.code in (1, 2, 4) and not is_help and (len(errors) != 1 or lines[-1] != errors[0]):
        add(f"{len(errors)} error lines")
    if outcome.code == 0 and errors:
        add("an error line and exit code 0")
    if any(len(line) > LONGEST_LINE for line in lines):
        add("an endless line on stderr")
    if _RAW.search(outcome.err) or _RAW.search(outcome.out):
        add("control characters")
    if outcome.code in (1, 2, 4) and outcome.out:
        add("output beside an error")
    allowed = tuple(may_change)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name) and not any(_belongs(name, each) for each in allowed):
            add(f"{'changed' if name in before and name in after else 'made' if name in after else 'removed'} {name!r}")


def _belongs(name: str, output: str) -> bool:
    """Say whether a file is an output of that name, or stands beside it under the same name."""
    plain = os.path.normpath(output)
    stem, _ = os.path.splitext(plain)
    return bool(stem) and (name == plain or name.startswith((plain + ".", plain + "/", stem + ".", stem + "-")))
