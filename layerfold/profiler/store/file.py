"""The SQLite file behind the cache: its schema, and what happens to one that cannot be used."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from pathlib import Path

from layerfold.cache_folder import default_cache_folder
from layerfold.errors import UsageError
from layerfold.profiler.store import earlier
from layerfold.profiler.store.claims import CREATE_CLAIM
from layerfold.profiler.store.transaction import transaction

FILE_NAME = "latency.sqlite"
MEMORY = ":memory:"
SCHEMA = 3
_CREATE = (
    """
CREATE TABLE IF NOT EXISTS measurement (
    environment TEXT NOT NULL, signature TEXT NOT NULL, kind TEXT NOT NULL, network TEXT NOT NULL,
    measured_at REAL NOT NULL, took_s REAL NOT NULL, build_s REAL, summary TEXT NOT NULL, conditions TEXT NOT NULL,
    PRIMARY KEY (environment, signature)
)
""",
    """
CREATE TABLE IF NOT EXISTS failure (
    environment TEXT NOT NULL, signature TEXT NOT NULL, reason TEXT NOT NULL, failed_at REAL NOT NULL,
    PRIMARY KEY (environment, signature)
)
""",
    CREATE_CLAIM,
)


_COLUMNS = {
    "measurement": (
        "environment",
        "signature",
        "kind",
        "network",
        "measured_at",
        "took_s",
        "build_s",
        "summary",
        "conditions",
    ),
    "failure": ("environment", "signature", "reason", "failed_at"),
    "claim": ("environment", "signature", "host", "pid", "born", "claimed_at"),
}


INSERT = f"INSERT OR REPLACE INTO measurement VALUES ({', '.join('?' * len(_COLUMNS['measurement']))})"
_SUFFIXES = ("", ".sqlite", ".sqlite3", ".db", ".cache")
"""A damaged file of such a name was a cache; of another it may be anybody's work, and stays where it is."""


def default_cache_path() -> Path:
    """Return the cache file in the user's folder for caches."""
    return default_cache_folder() / FILE_NAME


def open_cache_file(path: Path) -> sqlite3.Connection:
    """Open or make the file; one of schema 2 is brought up to date, any other and what is no such database kept aside.

    Raises:
        UsageError: the file or its folder cannot be written.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise UsageError(f"cache={str(path)!r} cannot be written: it is {what}; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            if path.suffix not in _SUFFIXES and not _begins_as_database(path):
                raise UsageError(f"cache={str(path)!r} is no cache, by name and content; name another file") from None
            aside = _move_aside(path)
            connection = _connect(path)
            kept = _salvage(aside, connection)
            print(
                f"layerfold: the cache {path} is not usable ({error}); kept as {aside.name}, started over"
                + (f" with {kept} measurements that could be read" if kept else ""),
                file=sys.stderr,
            )
            return connection
    except (OSError, sqlite3.OperationalError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"cache={str(path)!r} cannot be written: {cause}; "
            "set LAYERFOLD_CACHE or the cache option to a folder that can, or switch the cache off"
        ) from error


def open_for_reading(path: Path) -> sqlite3.Connection | None:
    """Open the file without ever writing to it; None where there is none, or none that can be read.

    One of schema 2 is copied to memory and brought up to date there.
    """
    if not path.is_file():
        return None
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30.0)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == SCHEMA:
            return connection
        if version == earlier.SCHEMA:
            with contextlib.closing(connection):
                copy = sqlite3.connect(MEMORY, isolation_level=None)
                connection.backup(copy)
            _bring_up_to_date(copy)
            return copy
    except sqlite3.Error:
        pass
    connection.close()
    return None


def open_in_memory() -> sqlite3.Connection:
    """Return a cache that ends with the process."""
    connection = sqlite3.connect(MEMORY, isolation_level=None)
    _create(connection)
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    try:
        # In one transaction: a process that makes the tables between the two would leave tables without a version.
        connection.execute("BEGIN")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        connection.execute("COMMIT")
        if version not in (0, earlier.SCHEMA, SCHEMA) or (version == 0 and tables):
            raise sqlite3.DatabaseError(f"its schema is {version}, this version of layerfold writes {SCHEMA}")
        if tables and connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its pages are damaged")
        # A file of schema 2 may have the columns of this one by now: another process may be bringing it up to date.
        earlier_columns = {**_COLUMNS, "measurement": earlier.COLUMNS} if version == earlier.SCHEMA else _COLUMNS
        for table in tables & _COLUMNS.keys():
            if _columns(connection, table) not in (_COLUMNS[table], earlier_columns[table]):
                raise sqlite3.DatabaseError(f"its table {table} has other columns")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if version == earlier.SCHEMA:
            _bring_up_to_date(connection)
        _create(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Write the measurements of schema 2 as this one has them, all or none: two processes may begin at once."""
    with transaction(connection):
        if _columns(connection, "measurement") == earlier.COLUMNS:  # no other process was quicker
            rows = list(earlier.rows_of(connection))
            connection.execute("DROP TABLE measurement")
            connection.execute(_CREATE[0])
            connection.executemany(INSERT, rows)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _columns(connection: sqlite3.Connection, table: str) -> tuple[str, ...]:
    return tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))


def _create(connection: sqlite3.Connection) -> None:
    """Make the tables, or find them; in one transaction, since two processes may begin at once."""
    with transaction(connection):
        for statement in _CREATE:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")


def _begins_as_database(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(16) == b"SQLite format 3\0"


def _salvage(aside: Path, connection: sqlite3.Connection) -> int:
    """Copy what can still be read of a file that was moved aside; return how many measurements that is."""
    count = 0
    with contextlib.suppress(sqlite3.Error):
        old = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            version = old.execute("PRAGMA user_version").fetchone()[0]
            if version not in (earlier.SCHEMA, SCHEMA):
                return 0
            columns = ", ".join(_COLUMNS["measurement"])
            is_earlier = version == earlier.SCHEMA
            rows = earlier.rows_of(old) if is_earlier else old.execute(f"SELECT {columns} FROM measurement")
            connection.execute("BEGIN")
            for row in rows:
                connection.execute(INSERT, row)
                count += 1
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")
            old.close()
    return count


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    number = 1
    while aside.exists():  # two in one second: none of them is overwritten
        number += 1
        aside = aside.with_name(f"{aside.name.partition('~')[0]}~{number}")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):  # they hold what the main file does not: kept with it
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(aside.with_name(aside.name + suffix))
    return aside
