"""The version of layerfold that a solution names."""

from __future__ import annotations

from functools import cache


@cache
def version() -> str:
    """Return the installed version, or the empty string in a bare source tree."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("layerfold")
    except PackageNotFoundError:
        return ""
