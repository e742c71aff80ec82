"""The command line: parse, call, print; results on stdout, progress and log on stderr (DESIGN.md, section 10)."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from layerfold import __version__
from layerfold.errors import LayerfoldError, UsageError, nearest_names

COMMANDS = (
    "compress", "demo", "inspect", "profile", "importance", "solve", "search", "verify", "finetune", "merge", "export",
    "run", "bench", "compare", "tables", "backends",
)  # fmt: skip
"""One module of this package each, in the order of the help."""

INTERRUPTED = 130
_USAGE = 2
_FAILURE = 1


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error is said."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every command; imports nothing heavy."""
    parser = _Parser(
        prog="layerfold",
        description="Make a trained CNN meet a latency budget on your device by merging its convolutions.",
        epilog="`layerfold COMMAND --help` shows a command's arguments and an example. Exit codes: 0 done, 1 failure, "
        "2 bad input, 3 budget out of reach, 4 missing package or device, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"layerfold {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name in COMMANDS:
        import_module(f"layerfold.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; an error that a user can cause is one line on stderr."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Read once, when torch is loaded: threads that wait by spinning make training several times slower as soon as
    # another process wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no × still gets its table
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILURE
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # each of several processes is interrupted
            _say("layerfold: interrupted; run the same command again to go on")
        return INTERRUPTED
    except LayerfoldError as error:
        if not error.is_said:
            _say(f"layerfold: error: {' '.join(str(error).split())}")
        return error.exit_code
    except OSError as error:
        _say(f"layerfold: error: {error}")
        return _FAILURE


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    if not arguments:
        print(parser.format_help(), file=sys.stderr)
        return _USAGE
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UsageError(f"unknown command {arguments[0]!r}{nearest_names(arguments[0], COMMANDS)}; "
                         "see `layerfold --help`")
    try:
        _refuse_unknown_options(parser, arguments)
        parsed = parser.parse_args(arguments)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    if parsed.command is None:
        parser.error("a command is missing")
    code: int = parsed.run(parsed)
    return code


def _refuse_unknown_options(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Name the nearest options of a misspelt one, which argparse does not, and does after what is missing."""
    commands = _subcommands(parser)
    chosen = commands.get(arguments[0])
    if chosen is None or _subcommands(chosen):
        return
    known = [option for option in chosen._option_string_actions if option.startswith("--")]
    for argument in arguments[1:]:
        if argument == "--":
            break
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in known:
            chosen.error(f"unknown argument {name}{nearest_names(name, known)}")


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _say(line: str) -> None:
    # The pipe that stderr leads to may be closed as well.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
