"""Parts that packages bring: registered as entry points, found by name, imported when they are asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from layerfold.errors import LayerfoldError, OptionalDependencyError
from layerfold.terminal import one_line


def is_installed(module: str) -> bool:
    """Say whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: a module that was made, or blocked, by hand
        return False


def entry_points_of(group: str) -> dict[str, EntryPoint]:
    """Return name -> entry point; a name of layerfold's own is taken by no one else, of others the first holds."""
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda each: not each.value.startswith("layerfold.")):
        found.setdefault(entry.name, entry)
    return found


def load_part(
    entry: EntryPoint, what: str, *, kind: str, members: Iterable[str], guide: str, error: type[LayerfoldError]
) -> Any:
    """Import what an entry point names.

    Args:
        entry: where it is.
        what: the argument that named it, for messages, such as ``backend='mine'``.
        kind: what it should be, such as ``backend``.
        members: names that it must have.
        guide: the page that says how to write one.
        error: what is raised where it is broken.

    Raises:
        OptionalDependencyError: the module that defines it imports a package that is missing.
        LayerfoldError: of the class ``error``: it cannot be loaded, or is no such part.
    """
    try:
        found = entry.load()
    except ImportError as failure:
        raise OptionalDependencyError(
            f"{what} ({entry.value}) cannot be imported: {_reason(failure)}; "
            f"install {brought_by(entry)} again, with what it needs"
        ) from failure
    except Exception as failure:  # code of others: whatever it raises at import
        raise error(
            f"{what} ({entry.value}) fails at import: {type(failure).__name__}: "
            f"{_reason(failure)}; tell the makers of {brought_by(entry)}"
        ) from failure
    lacking = [member for member in members if not hasattr(found, member)]
    if lacking:
        raise error(f"{what} ({entry.value}) is no {kind}: it lacks {', '.join(lacking)}; see {guide}")
    return found


def brought_by(entry: EntryPoint) -> str:
    """Return the name of the package that registers an entry point, for messages."""
    return entry.dist.name if entry.dist is not None else "the package that registers it"


def _reason(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__, most=300)
