"""Where what can be made again is kept: measurements, decoded images. No torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from layerfold.errors import UsageError


def default_cache_folder() -> Path:
    """Return the folder ``LAYERFOLD_CACHE``, if set, else ``layerfold`` in the platform's folder for caches.

    Raises:
        UsageError: the user has no home folder.
    """
    folder = os.environ.get("LAYERFOLD_CACHE")
    if folder:
        return Path(folder)
    if sys.platform == "darwin":
        base = _home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    return base / "layerfold"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user that the system does not know, as in a container
        raise UsageError("HOME is not set, so there is no folder for caches; set LAYERFOLD_CACHE to a folder") from None
