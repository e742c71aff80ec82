"""Output files: refused before any time is spent where they are there already, an input, or one another."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfold.cli._options import check_named, check_output
from layerfold.errors import UsageError
from layerfold.files import held

PICTURES = (".png", ".svg", ".pdf")
_INPUTS = (
    "latency",
    "importance",
    "solution",
    "solutions",
    "weights",
    "teacher_weights",
    "checkpoint",
    "merged",
    "file",
    "files",
    "against",
    "model",
    "networks",
    "data",
    "labels",
)
"""Arguments that name what a command reads."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """A file that a command will write.

    Attributes:
        flag: the argument that names it.
        path: as given; None where the argument is not.
        suffixes: names may end in; empty for any.
        has_sidecar: whether ``<path>.json`` is written too.
        is_appended: whether it is gone on with where it is there already.
        has_own_check: whether whoever writes it says best why it cannot: only the names are compared here.
    """

    flag: str
    path: str | Path | None
    suffixes: Sequence[str] = ()
    has_sidecar: bool = False
    is_appended: bool = False
    has_own_check: bool = False


def check_outputs(args: argparse.Namespace, *outputs: Output, overwrite: bool | None = None) -> None:
    """Refuse output files that must not or cannot be written.

    Args:
        args: of the command; what it reads is found by its names.
        outputs: all that it writes.
        overwrite: whether existing files may be replaced; None for ``--overwrite``. Its own input a command never
            replaces.

    Raises:
        UsageError: a name with another suffix, a folder, an input of the command, the name of another output, a file
            that is there already, or a place that cannot be written.
    """
    may_replace = args.overwrite if overwrite is None else overwrite
    named: dict[str, str] = {}
    for output in outputs:
        if output.path is None:
            continue
        path = str(output.path)
        check_named(path, output.flag)
        if output.suffixes and Path(path).suffix not in output.suffixes:
            raise UsageError(f"{output.flag} {path}: expected a name that ends in {' or '.join(output.suffixes)}")
        for place in (path, f"{path}.json") if output.has_sidecar else (path,):
            for source in _inputs_of(args):
                if _is_same(place, source):
                    raise UsageError(
                        f"{output.flag} {path}: {_wrote(place, path)}{source}, which this command reads; "
                        "name another file"
                    )
            other = named.setdefault(os.path.realpath(place), output.flag)
            if other != output.flag:
                raise UsageError(
                    f"{output.flag} {path}: {_wrote(place, path)}what {other} names as well; name another file"
                )
            if not output.has_own_check:
                check_output(place, flag=output.flag, overwrite=may_replace or output.is_appended)


@contextlib.contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Keep other processes from making the same result meanwhile.

    Of several processes of one training the first alone counts.

    Raises:
        UsageError: another process is at it; names that process.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    check_output(path, overwrite=True)
    target = Path(os.path.realpath(path))
    made = [folder for folder in target.parents if not folder.exists()]
    try:
        with held(
            target.with_name(f".{target.name}.lock"),
            subject=f"-o {path}",
            remedy="wait for it, stop it, or name another file",
        ):
            yield
    finally:
        with contextlib.suppress(OSError):  # a command that came to nothing leaves no folder
            for folder in made:
                folder.rmdir()


def _wrote(place: str, path: str) -> str:
    return "is " if place == path else f"its {os.path.basename(place)} is "


def _inputs_of(args: argparse.Namespace) -> Iterator[str]:
    """Yield every file that the arguments name as an input, and what lies beside it."""
    for name in _INPUTS:
        given = getattr(args, name, None)
        for text in given if isinstance(given, list) else [given]:
            if not isinstance(text, (str, Path)):
                continue
            # NAME=FILE, KIND:FILE and FILE:FUNCTION
            whole = str(text)
            parts = {whole, whole.partition("=")[2], whole.partition(":")[2], whole.rpartition(":")[0]} - {""}
            for part in sorted(parts, key=len, reverse=True):
                yield part
                yield f"{part}.json"


def _is_same(place: str, source: str) -> bool:
    """Say whether two names lead to one file, through links of either kind."""
    try:
        return os.path.samefile(place, source)
    except (OSError, ValueError):
        return False
