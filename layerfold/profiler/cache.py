"""Measurements that outlive a run: one SQLite row each, written the moment it is finished.

A row is keyed by its *environment* (device, driver, backend, versions, options, dtype, batch: canonical JSON) and
by the signature of what was measured. A killed run goes on where it stopped; another network on the same
device pays only for signatures not seen before.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from layerfold.errors import ProfilerError, UsageError
from layerfold.profiler.measure import Measurement

FILE_NAME = "latency.sqlite"
_SCHEMA = 1
_CREATE = """
CREATE TABLE IF NOT EXISTS measurement (
    environment TEXT NOT NULL, signature TEXT NOT NULL,
    median_ms REAL NOT NULL, low_ms REAL NOT NULL, high_ms REAL NOT NULL, spread_ms REAL NOT NULL,
    blocks INTEGER NOT NULL, runs INTEGER NOT NULL, is_settled INTEGER NOT NULL, measured_at REAL NOT NULL,
    PRIMARY KEY (environment, signature)
)
"""


def default_cache_path() -> Path:
    """Return the cache file: in the folder ``LAYERFOLD_CACHE``, else in the platform's folder for caches."""
    folder = os.environ.get("LAYERFOLD_CACHE")
    if folder:
        return Path(folder) / FILE_NAME
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "layerfold" / FILE_NAME


class MeasurementCache:
    """An open cache file for one environment.

    A file that is no such database, or of another schema, is moved aside and a new one begun, with one line on stderr.

    Args:
        path: the file, or None for the default place; missing folders are made.
        environment: what the measurements depend on besides their signature.

    Raises:
        UsageError: the file or its folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, environment: Mapping[str, Any]) -> None:
        self.path = default_cache_path() if path is None else Path(path)
        self._environment = json.dumps(environment, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._move_aside(str(error))
                self._connection = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UsageError(
                f"cache={str(self.path)!r} cannot be written: {cause}; "
                "set LAYERFOLD_CACHE or the cache option to a folder that can, or switch the cache off"
            ) from error

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version not in (0, _SCHEMA) or (version == 0 and tables):
                raise sqlite3.DatabaseError(f"its schema is {version}, this version of layerfold writes {_SCHEMA}")
            if tables and connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("its pages are damaged")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_CREATE)
            connection.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        print(f"layerfold: the cache {self.path} is not usable ({reason}); kept as {aside.name}, begun anew",
              file=sys.stderr)

    def get(self, signature: str) -> Measurement | None:
        """Return the stored measurement, or None."""
        try:
            row = self._connection.execute(
                "SELECT median_ms, low_ms, high_ms, spread_ms, blocks, runs, is_settled FROM measurement "
                "WHERE environment = ? AND signature = ?",
                (self._environment, signature),
            ).fetchone()
        except sqlite3.Error as error:
            raise ProfilerError(f"cache={str(self.path)!r} cannot be read: {error}; move it away") from error
        if row is None:
            return None
        return Measurement(median_ms=row[0], low_ms=row[1], high_ms=row[2], spread_ms=row[3], blocks=row[4],
                           runs=row[5], is_settled=bool(row[6]))

    def put(self, signature: str, measurement: Measurement) -> None:
        """Store a measurement at once; an older one of the same signature is replaced.

        Raises:
            ProfilerError: the disk is full or the file has become unwritable; what was stored before stays.
        """
        m = measurement
        row = (self._environment, signature, m.median_ms, m.low_ms, m.high_ms, m.spread_ms, m.blocks, m.runs,
               int(m.is_settled), time.time())
        try:
            self._connection.execute(f"INSERT OR REPLACE INTO measurement VALUES ({', '.join('?' * len(row))})", row)
        except sqlite3.Error as error:
            raise ProfilerError(
                f"cache={str(self.path)!r} cannot be written: {error}; earlier measurements are kept: "
                "make room there and run again to go on"
            ) from error

    def close(self) -> None:
        """Close the file; the rows are there already."""
        self._connection.close()

    def __enter__(self) -> MeasurementCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
