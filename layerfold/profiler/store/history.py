"""What a cache file holds, read without writing anything: for estimates."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.profiler.backends import Backend
from layerfold.profiler.store.environment import environment_of
from layerfold.profiler.store.file import default_cache_path, open_for_reading
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.store.rows import facts_in


class CacheHistory:
    """Content of a cache file for an environment, read without writing anything: for estimates and for reading.

    Args:
        path: the file, or None for the default place; it need not exist.
        environment: as of ``MeasurementCache``.
    """

    def __init__(self, path: str | os.PathLike[str] | None, environment: Mapping[str, object]) -> None:
        self.path = default_cache_path() if path is None else Path(path)
        self._environment = json.dumps(environment, sort_keys=True)
        try:
            self._connection = open_for_reading(self.path)
        except sqlite3.Error as error:
            raise UsageError(f"cache={str(self.path)!r} cannot be read: {error}; name another file") from error

    def holds(self, signature: str) -> bool:
        """Say whether a signature is measured, or known to fail."""
        if self._connection is None:
            return False
        key = (self._environment, signature)
        query = (
            "SELECT 1 FROM measurement WHERE environment = ? AND signature = ? UNION ALL "
            "SELECT 1 FROM failure WHERE environment = ? AND signature = ?"
        )
        return any(self._every(query, (*key, *key)))

    def seconds(self, kind: Kind, network: str | None = None) -> list[float]:
        """Return what each measurement of a kind took, builds included; of one network, if it is given."""
        if self._connection is None:
            return []
        query = "SELECT took_s FROM measurement WHERE environment = ? AND kind = ?"
        values = [self._environment, kind.value]
        if network is not None:
            query += " AND network = ?"
            values.append(network)
        found = (row[0] for row in self._every(f"{query} ORDER BY measured_at", values))
        return [each for each in found if isinstance(each, (int, float)) and 0 <= each < 1e9]

    def summaries(self, signatures: Iterable[str]) -> dict[str, JsonObject]:
        """Return all that is stored of signatures."""
        if self._connection is None:
            return {}
        return {
            signature: found
            for signature in signatures
            if (
                found := facts_in(
                    lambda query, values: next(iter(self._every(query, values)), None), self._environment, signature
                )
            )
            is not None
        }

    def _every(self, query: str, values: Sequence[Any]) -> list[Any]:
        """Return all rows; none of a file that turns out to be damaged: nothing is known then."""
        assert self._connection is not None
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error:
            return []

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()


def open_history(
    path: str | os.PathLike[str] | None, backend: Backend, *, batch: int = 1, dtype: str = "float32"
) -> CacheHistory:
    """Open the cache for a backend for reading only; nothing is made or written."""
    return CacheHistory(path, environment_of(backend, batch=batch, dtype=dtype))
