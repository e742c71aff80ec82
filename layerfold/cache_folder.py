"""Where what can be made again is kept: measurements, decoded images. No torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def default_cache_folder() -> Path:
    """Return the folder ``LAYERFOLD_CACHE``, if set, else ``layerfold`` in the platform's folder for caches."""
    folder = os.environ.get("LAYERFOLD_CACHE")
    if folder:
        return Path(folder)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "layerfold"
