"""The command line: parse, call, print; results on stdout, progress and log on stderr."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from layerfold import __version__
from layerfold.cli._choices import check_packages
from layerfold.cli._failures import FAILURE, Terminated, line_of, quieten_libraries
from layerfold.cli._parser import Parser, parse
from layerfold.cli._process import ending_on_signals, ignore_signals, is_gone, open_closed_streams
from layerfold.errors import UsageError, nearest_names
from layerfold.terminal import one_line, results_alone

COMMANDS = (
    "compress",
    "demo",
    "inspect",
    "profile",
    "importance",
    "solve",
    "search",
    "verify",
    "finetune",
    "merge",
    "export",
    "run",
    "bench",
    "compare",
    "tables",
    "backends",
)
"""One module of this package each, in the order of the help."""

INTERRUPTED = 130
_USAGE = 2
_TOGETHER = ("finetune",)
"""Commands that several processes may do together, started by torchrun or ``accelerate launch``."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command; imports nothing heavy."""
    parser = Parser(
        prog="layerfold",
        description="Make a trained CNN meet a latency budget on your device by merging its convolutions.",
        epilog="`layerfold COMMAND --help` shows a command's arguments and an example. Exit codes: 0 done, 1 failure, "
        "2 bad input, 3 budget out of reach, 4 missing package or device, 130 interrupted.",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="show the traceback of an error; may stand anywhere (the same: LAYERFOLD_DEBUG=1)",
    )
    parser.add_argument("--version", action="version", version=f"layerfold {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        import_module(f"layerfold.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; whatever goes wrong is one line on stderr.

    Args:
        argv: arguments in place of the program's own; then nothing of this process is changed for good.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Read once, when torch is loaded. Threads that wait by spinning make training ten times slower as soon as
        # another process wants the cores; threads that sleep at once make it two times slower on an idle machine.
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    open_closed_streams()
    arguments, is_debug = _without_debug(arguments)
    if argv is None and not is_debug:
        quieten_libraries()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no × still gets its table
    try:
        with ending_on_signals():
            code = _run(arguments)
            sys.stdout.flush()
            return code
    except BaseException as error:  # the last resort: nobody sees a traceback who did not ask for one
        ignore_signals(argv is None)
        if isinstance(error, BrokenPipeError) and is_gone(sys.stdout):
            return FAILURE
        if is_debug:
            traceback.print_exception(error)
        code, line = _end_of(error, arguments)
        if line is not None:
            _say(f"layerfold: {line}")
        is_gone(sys.stdout)
        return code


def _end_of(error: BaseException, arguments: list[str]) -> tuple[int, str | None]:
    if not isinstance(error, KeyboardInterrupt):
        return line_of(error, arguments)
    if os.environ.get("RANK", "0") != "0":  # each of several processes is interrupted
        return INTERRUPTED, None
    if isinstance(error, Terminated):
        name = signal.Signals(error.signal_number).name
        return 128 + error.signal_number, f"ended by {name}; run the same command again to go on"
    return INTERRUPTED, "interrupted; run the same command again to go on"


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out, wherever it stands; LAYERFOLD_DEBUG=1 says the same."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    rest = [each for each in arguments[:end] if each != "--debug"] + arguments[end:]
    return rest, len(rest) < len(arguments) or os.environ.get("LAYERFOLD_DEBUG", "") not in ("", "0")


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    if not arguments:
        with results_alone():
            print(parser.format_help(), file=sys.stderr)
        return _USAGE
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UsageError(
            f"unknown command {arguments[0]!r}{nearest_names(arguments[0], COMMANDS)}; see `layerfold --help`"
        )
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        parser.error(f"unrecognized arguments: {' '.join(arguments)}; a command comes first")
    try:
        parsed = parse(parser, arguments)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    if parsed.command is None:
        parser.error("a command is missing")
    _check_processes(parsed.command)
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the current folder was deleted; go to another one (cd) and run the command again") from None
    check_packages(parsed)
    with results_alone():
        code: int = parsed.run(parsed)
    return code


def _check_processes(command: str) -> None:
    """Refuse several processes of a command that would each do and write the same."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if command not in _TOGETHER and processes.isdigit() and int(processes) > 1:
        error = UsageError(
            f"{command}: was started {processes} times at once (WORLD_SIZE={processes}), and each would "
            "do and write the same; start it alone, without torchrun or accelerate launch"
        )
        error.is_said = os.environ.get("RANK", "0") != "0"
        raise error


def _say(line: str) -> None:
    # The pipe that stderr leads to may be closed as well.
    with contextlib.suppress(OSError, ValueError):
        print(one_line(line), file=sys.stderr, flush=True)
