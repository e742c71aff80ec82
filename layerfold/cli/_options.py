"""What the commands share: kinds of numbers, output files that are not overwritten, backends, examples in the help."""

from __future__ import annotations

import argparse
import math
import os
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.arguments import LIMITS
from layerfold.cli._quantities import finite_number, parse_ms, parse_speedup
from layerfold.errors import UsageError

if TYPE_CHECKING:
    from layerfold.profiler import Backend
    from layerfold.profiler.backends import BackendOptions


def add_command(subparsers: Any, name: str, help_text: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Add a command whose help ends in an example, or several."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help_text,
        description=textwrap.fill(description, 79),
        epilog=f"example{'s' if examples.count('  layerfold ') > 1 else ''}:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


MOST = 10**9
"""Of what is counted, unless a flag says less."""
THREADS, BATCH, CLASSES = (LIMITS[name][1] for name in ("threads", "batch", "num_classes"))
SEED = 2**32 - 1
"""The largest seed that every library takes."""


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Return argparse's type for a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= 20
        if not (is_number and least <= int(text) <= most):
            limit = f", at most {most}," if is_number and int(text) > most else ""
            raise argparse.ArgumentTypeError(f"{text}: a whole number of at least {least}{limit} is expected")
        return int(text)

    return parse


def above(bound: float, most: float = math.inf) -> Callable[[str], float]:
    """Return argparse's type for a finite number above ``bound`` and at most ``most``."""
    return _number(lambda value: bound < value <= most, f"above {bound:g}", most)


def at_least(bound: float, most: float = math.inf) -> Callable[[str], float]:
    """Return argparse's type for a finite number from ``bound`` to ``most``."""
    return _number(lambda value: bound <= value <= most, f"of at least {bound:g}", most)


def _number(is_fine: Callable[[float], bool], rule: str, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = finite_number(text)
        if not (math.isfinite(value) and is_fine(value)):
            limit = "" if math.isinf(most) else f", at most {most:g},"
            raise argparse.ArgumentTypeError(f"{text}: a number {rule}{limit} is expected")
        return value

    return parse


def add_budget_arguments(group: argparse._ActionsContainer, budget_help: str, speedup_help: str, **how: Any) -> None:
    """Add ``--budget`` in ms and ``--speedup``, both with further arguments of argparse."""
    group.add_argument("--budget", type=partial(parse_ms, argument="--budget"), metavar="MS", help=budget_help, **how)
    group.add_argument("--speedup", type=parse_speedup, metavar="X", help=speedup_help, **how)


def add_former_name(group: argparse._ActionsContainer, action: argparse.Action, name: str) -> None:
    """Take a flag by a name that it had before, too; the help does not show it."""
    group._option_string_actions[name] = action


def add_result_arguments(parser: argparse.ArgumentParser, *, has_progress: bool = True) -> None:
    """Add ``--json``, and ``--quiet`` for a command that shows its progress."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if has_progress:
        parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def add_output_arguments(
    parser: argparse.ArgumentParser, metavar: str, help_text: str, *, required: bool = True
) -> None:
    """Add ``-o`` and ``--overwrite``."""
    group = parser.add_argument_group("output")
    group.add_argument("-o", "--output", required=required, metavar=metavar, help=help_text)
    group.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def check_output(
    path: str | Path | None, *, flag: str = "-o", suffix: str | None = None, overwrite: bool = False
) -> None:
    """Refuse a file that could not be written in the end, before any time is spent.

    Raises:
        UsageError: another suffix, a folder, a file that is there already, or a place that cannot be.
    """
    if path is None:
        return
    check_named(path, flag)
    target = Path(path)
    if suffix is not None and target.suffix != suffix:
        raise UsageError(f"{flag} {path}: expected a name that ends in {suffix}")
    if target.is_dir():
        raise UsageError(f"{flag} {path}: is a folder, expected a file name")
    if target.exists() and not target.is_file():
        raise UsageError(f"{flag} {path}: is no regular file, so no result can take its place; name another")
    if target.exists() and not overwrite:
        raise UsageError(f"{flag} {path}: is there already; name another file, or add --overwrite to replace it")
    _check_place(target.absolute().parent, path, flag)


def check_output_folder(path: str | Path) -> None:
    """Refuse a folder of ``-o`` that could not be written in the end, before any time is spent; it need not be there.

    Raises:
        UsageError: no name, a file, or a place that cannot be.
    """
    check_named(path, "-o")
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise UsageError(f"-o {path}: is a file, expected a folder; name another")
    _check_place(target.absolute(), path, "-o")


def check_named(path: str | Path, flag: str) -> None:
    """Raise UsageError for an empty name, which would stand for the folder that one is in."""
    if not str(path):
        raise UsageError(f"{flag} '': names nothing to write; give a name")


def _check_place(folder: Path, path: str | Path, flag: str) -> None:
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{flag} {path}: {folder} is a file, expected a folder")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{flag} {path}: {folder} cannot be written; choose another folder")


def add_backend_arguments(
    parser: argparse.ArgumentParser,
    *,
    batch: bool = True,
    precisions: str = "float32, float16, bfloat16 or int8, as the backend has them",
) -> None:
    """Add the options of a backend, and ``--batch``; read them with ``open_backend``."""
    group = parser.add_argument_group("backend")
    group.add_argument(
        "--backend",
        default="onnxruntime",
        metavar="NAME",
        help="what runs the network, see `layerfold backends` (default: %(default)s)",
    )
    group.add_argument("--device", metavar="NAME", help="a device of that backend (default: its first)")
    group.add_argument("--threads", type=whole(1, THREADS), metavar="N", help="worker threads on a CPU (default: 1)")
    group.add_argument("--precision", metavar="NAME", help=f"{precisions} (default: float32)")
    group.add_argument(
        "--layout", metavar="NAME", help="nchw, or channels_last where the device has it (default: nchw)"
    )
    group.add_argument(
        "--backend-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of that backend alone, for example compile_mode=default; may be given again",
    )
    if batch:
        add_batch_argument(group)


def add_batch_argument(group: argparse._ActionsContainer, of: str = "") -> None:
    """Add ``--batch``; ``of`` says of what, where that is not plain."""
    text = f"images in one forward pass{of} (default: %(default)s)"
    group.add_argument("--batch", type=whole(1, BATCH), default=1, metavar="N", help=text)


def open_backend(arguments: argparse.Namespace) -> Backend:
    """Return the backend that ``add_backend_arguments`` read; what was not given is left to the backend."""
    from layerfold.profiler import get_backend

    return get_backend(arguments.backend, device=arguments.device, **backend_options(arguments))


def backend_options(arguments: argparse.Namespace) -> BackendOptions:
    """Return the options of the backend that were given.

    Raises:
        UsageError: an option that is no NAME=VALUE.
    """
    from layerfold.profiler.backends.base import NAMED_OPTIONS

    options: BackendOptions = {}
    for text in arguments.backend_option:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--backend-option {text}: give NAME=VALUE, for example compile_mode=default")
        if name in NAMED_OPTIONS:
            flag = "backend" if name == "name" else name
            raise UsageError(f"--backend-option {text}: {name} has an argument of its own; give --{flag} {value}")
        options[name] = int(value) if value.isascii() and value.isdigit() else value
    for name in ("threads", "precision", "layout"):
        value = getattr(arguments, name)
        if value is not None:
            options[name] = value
    return options
