"""Odd command lines for every command: no traceback, no hang, the right exit code, no file touched but the outputs.

    python benchmarks/robustness/fuzz_arguments.py                    # 100 command lines per command
    python benchmarks/robustness/fuzz_arguments.py -n 20 --only solve --seed 3 --verbose

Each begins as a good command line on tiny real inputs (inputs.py), to which one to four changes are made, drawn from
what the command's own parser says: flags with good, odd or no values, values repeated, left out, swapped, mutilated.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from harness import Outcome, judge, load_everything, run_forked, snapshot
from inputs import SKELETONS, make_inputs
from record import write_record

ODD = [
    "",
    " ",
    "-",
    "--",
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "1e-400",
    "9" * 30,
    "9" * 5000,
    "x" * 5000,
    "1_0",
    "0x10",
    "\u0663",
    "\u00b2",
    "\u22121",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "a\rb",
    "\t",
    "\u202eabc",
    "\ud800",
    "\udcff",
    "=1+1",
    "@SUM(A1)",
    "../../etc/passwd",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    ".",
    "..",
    "/",
    "~",
    "*",
    "?",
    "$(touch pwned)",
    "`id`",
    "; ls",
    "%s%n",
    "{}",
    "{0.__class__}",
    "\\",
    "'",
    '"',
    "<b>x</b>",
    "None",
    "true",
    "[]",
    "a=b",
    "=",
    ":",
    "::",
    "timm:",
    "timm:resnet999",
    "torchvision:resnet18x",
    "own.py:",
    "own.py:images",
    "own.py:nothing",
    "missing.py:net",
    "folder:",
    "folder:images",
    "folder:missing",
    "images:images",
    "parquet:latency.csv",
    "torch/x",
    "hfds/",
    "wds/missing",
    "3x8x8",
    "0x0x0",
    "1x1x1",
    "3x8",
    "3x99999x99999",
    "1ms",
    "0ms",
    "1e-9ms",
    "5 parsecs",
    "1,2,3",
    "1-999999",
    "3-1",
    "cuda",
    "cuda:99",
    "cpu",
    "gpu",
    "onnxruntime",
    "torch",
    "tensorrt",
    "openvino",
    "int8",
    "float16",
    "nchw",
    "a" * 300 + ".csv",
    "\u00e9\u4e2d.csv",
    "fifo",
    "loop",
    "locked",
    "locked/new.csv",
    "latency.csv/new.csv",
    "missing/new.csv",
    "images",
]
FILES = [
    "latency.csv",
    "importance.csv",
    "solution.json",
    "weights.pth",
    "finetuned.safetensors",
    "merged.safetensors",
    "network.onnx",
    "image.png",
    "own.py",
    "latency.csv.json",
    "empty",
    "missing.csv",
]
OUTPUTS = [
    "-o",
    "--output",
    "--svg",
    "--csv",
    "--plot",
    "--pth",
    "--frontier",
    "--onnx",
    "--log",
    "--summaries",
    "--weights-out",
    "--tensorboard",
    "--timing-cache",
    "--cache",
    "--image-cache",
    "--save-both",
]


def parsers() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """Return every command's parser by its name."""
    from layerfold.cli import build_parser
    from layerfold.cli._parser import subcommands

    found: dict[tuple[str, ...], argparse.ArgumentParser] = {}
    for name, parser in subcommands(build_parser()).items():
        below = subcommands(parser)
        found |= {(name, each): sub for each, sub in below.items()} if below else {(name,): parser}
    return found


def change(arguments: list[str], parser: argparse.ArgumentParser, rng: random.Random) -> list[str]:
    """Return a command line with one more change."""
    found = list(arguments)
    place = rng.randrange(len(found) + 1)
    kind = rng.choice((*["flag"] * 6, "value", "value", "drop", "double", "swap", "mutilate", "odd"))
    if kind == "flag" or not found:
        action = rng.choice([each for each in parser._actions if each.option_strings and each.dest != "help"])
        flag = rng.choice(action.option_strings)
        if action.nargs == 0:
            return [*found, rng.choice((flag, flag, flag + "=1"))]
        value = value_of(action, rng)
        return [*found, *rng.choice(([flag, value], [f"{flag}={value}"]) * 4 + ([flag],))]
    at = min(place, len(found) - 1)
    if kind == "value":
        found[at] = rng.choice((rng.choice(ODD), rng.choice(FILES)))
    elif kind == "drop":
        del found[at]
    elif kind == "double":
        found.insert(place, found[at])
    elif kind == "swap":
        other = rng.randrange(len(found))
        found[at], found[other] = found[other], found[at]
    elif kind == "mutilate":
        text = found[at]
        cut = rng.randrange(len(text) + 1)
        found[at] = rng.choice(
            (
                text[:cut],
                text[cut:],
                text[:cut] + rng.choice(ODD)[:40] + text[cut:],
                text * 2,
                text.upper(),
                text + "\x00",
            )
        )
    else:
        found.insert(place, rng.choice(ODD))
    return found


def value_of(action: argparse.Action, rng: random.Random) -> str:
    """Return a value for a flag: four of five good."""
    if rng.random() < 0.8:
        if action.choices is not None:
            return str(rng.choice(list(action.choices)))
        good = []
        for text in ("1", "2", "3", "0.5", "0.1", "16", "1.5ms", "3x8x8", "0.5,0.5,0.5", "1,2"):
            if action.type is not None:
                try:
                    action.type(text)  # type: ignore[operator]
                    good.append(text)
                except Exception:
                    continue
        return rng.choice(good or FILES)
    return rng.choice(ODD)


def command_lines(
    path: tuple[str, ...], parser: argparse.ArgumentParser, number: int, seed: int
) -> Iterator[list[str]]:
    """Yield odd command lines; the first is the good one."""
    rng = random.Random(f"{seed} {path}")
    for index in range(number):
        arguments = list(SKELETONS[path])
        for _ in range(rng.choice((1, 1, 1, 2, 3, 4)) if index else 0):
            arguments = change(arguments, parser, rng)
        yield [*path, *(text.replace("\x00", "\\0") for text in arguments)]  # no program is ever given a zero byte


def run_case(arguments: list[str], inputs: Path, limit_s: float) -> Outcome | None:
    """Run one command line in a fresh copy of the inputs; None for the demo, which takes minutes where it is right."""
    if arguments[0] == "demo" and _is_right(arguments):
        return None
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "work"
        shutil.copytree(inputs, folder)
        os.mkfifo(folder / "fifo")
        (folder / "loop").symlink_to("loop")
        (folder / "locked").mkdir(mode=0o500)
        (folder / "empty").write_text("")
        before = snapshot(folder)
        os.environ["LAYERFOLD_CACHE"] = str(folder / "cache")
        outcome = run_forked(arguments, folder, limit_s=limit_s)
        judge(outcome, before, snapshot(folder), may_change=outputs_of(arguments, before))
        (folder / "locked").chmod(0o700)
    return outcome


def outputs_of(arguments: list[str], before: dict[str, str]) -> list[str]:
    """Return what the outputs may be called; a file that was there only with ``--overwrite``, or where it grows."""
    named = []
    for index, text in enumerate(arguments):
        flag, equals, value = text.partition("=")
        if flag in OUTPUTS:
            value = value if equals else arguments[index + 1] if index + 1 < len(arguments) else ""
            grows = flag in ("--log", "--cache", "--timing-cache")
            if value and (value not in before or grows or "--overwrite" in arguments):
                named.append(value)
        elif text.startswith("-o") and len(text) > 2 and (text[2:] not in before or "--overwrite" in arguments):
            named.append(text[2:])
    return named


def _is_right(arguments: list[str]) -> bool:
    from layerfold.cli import build_parser
    from layerfold.errors import LayerfoldError

    try:
        build_parser().parse_args(arguments)
    except (LayerfoldError, SystemExit):
        return False
    return True


def main() -> None:
    """Run, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100, help="command lines per command")
    parser.add_argument("--only", action="append", help="commands, for example solve or 'tables merge'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=60.0, help="seconds after which a command counts as hanging")
    parser.add_argument("--verbose", action="store_true", help="show every command line")
    parser.add_argument("--no-record", action="store_true", help="print only")
    args = parser.parse_args()
    load_everything()
    rows: dict[str, dict[str, Any]] = {}
    faults: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-inputs-") as name:
        inputs = Path(name)
        os.environ["LAYERFOLD_CACHE"] = str(inputs / "cache")
        make_inputs(inputs)
        for path, each in parsers().items():
            command = " ".join(path)
            if args.only and command not in args.only:
                continue
            began, codes, bad, longest = time.monotonic(), Counter[str](), 0, 0.0
            for arguments in command_lines(path, each, args.n, args.seed):
                outcome = run_case(arguments, inputs, args.limit_s)
                if outcome is None:
                    codes["not run"] += 1
                    continue
                codes[str(outcome.code)] += 1
                longest = max(longest, outcome.seconds)
                if args.verbose:
                    print(f"{outcome.code} {outcome.seconds:.1f} s  {_shown(arguments)}\n    {_last(outcome)!a}")
                if outcome.faults:
                    bad += 1
                    faults.append({"arguments": arguments, "faults": outcome.faults, "said": outcome.err[-600:]})
                    print(f"FAULT {outcome.faults}\n  {_shown(arguments)}\n  {outcome.err[-900:]!a}", flush=True)
            rows[command] = {
                "command_lines": args.n,
                "faults": bad,
                "codes": dict(sorted(codes.items())),
                "longest_s": round(longest, 1),
                "seconds": round(time.monotonic() - began, 1),
            }
            print(f"{command:14} {bad:3} faults  {rows[command]['codes']}  {rows[command]['seconds']} s", flush=True)
    total = sum(row["faults"] for row in rows.values())
    print(f"{sum(row['command_lines'] for row in rows.values())} command lines, {total} with faults")
    if not args.no_record:
        write_record(
            "fuzz_arguments",
            {"commands": rows, "faults": faults},
            {"command_lines_each": args.n, "seed": args.seed, "limit_s": args.limit_s},
            packages=("torch", "onnxruntime", "timm"),
        )
    sys.exit(1 if total else 0)


def _shown(arguments: list[str]) -> str:
    return ascii(shlex.join(arguments))[1:-1][:1000]


def _last(outcome: Outcome) -> str:
    return (outcome.err.splitlines() or [""])[-1][:300]


if __name__ == "__main__":
    main()
