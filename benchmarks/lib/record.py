"""A measurement is a record: the numbers, with hardware, versions, date and settings beside them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results"


def shared_path() -> Path:
    """Return the folder of the published tables, or end with a reason."""
    path = Path(os.environ.get("LAYERFOLD_SHARED", ROOT.parent / "shared"))
    if not (path / "seed_tables").is_dir():
        sys.exit("error: no published tables; set LAYERFOLD_SHARED to the folder that holds seed_tables/")
    return path


def write_record(
    name: str, results: dict[str, Any], settings: dict[str, Any], *, packages: Sequence[str] = ("numpy", "scipy")
) -> None:
    """Write ``benchmarks/results/<name>.json``, with the versions of ``packages``, and print it."""
    record = {
        "name": name,
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(terse=True)},
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "versions": {"python": platform.python_version(), **{each: _version(each) for each in packages}},
        "settings": settings,
        "results": results,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def peak_memory_mib() -> float:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def commit() -> str:
    """Return the short name of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
