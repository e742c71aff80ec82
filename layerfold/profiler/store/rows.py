"""The rows of a cache file, as whoever fills it asks for them: this process, or others through the one that has it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from layerfold.files import JsonObject
from layerfold.profiler.store.checked import facts_of
from layerfold.profiler.store.claims import Claimant, ClaimWatch, Heart, claim_holders, drop_claims, take_claims
from layerfold.profiler.store.file import MEMORY, default_cache_path, open_cache_file, open_in_memory

FACTS = "kind, summary, conditions, measured_at, took_s, build_s"
"""The columns that :func:`facts_of` takes."""


class Rows(Protocol):
    """Store that a ``MeasurementCache`` asks. Everything given and returned is plain, so that it may travel.

    Attributes:
        path: of the file, for messages.
    """

    path: str

    def one(self, query: str, values: Sequence[Any]) -> Any:
        """Return the first row that a query gives, or None."""

    def every(self, query: str, values: Sequence[Any]) -> list[Any]:
        """Return all rows that a query gives."""

    def write(self, statement: str, values: Sequence[Any]) -> None:
        """Change a row; it is on disk when this returns."""

    def open_among(self, environment: str, signatures: Sequence[str]) -> list[str]:
        """Return those that are neither measured nor failed."""

    def measured(self, environment: str) -> list[str]:
        """Return every signature that is measured."""

    def claim(self, environment: str, signatures: Sequence[str], most: int, claimant: Claimant) -> list[str]:
        """Claim up to ``most`` that are open and that nobody alive has claimed."""

    def holders(self, environment: str, signatures: Sequence[str]) -> list[str]:
        """Return which other processes have claimed any of these, in words."""

    def release(self, environment: str, signatures: Sequence[str]) -> None:
        """Give up claims."""

    def close(self) -> None:
        """Close the file; the rows are there already."""


class RowFile:
    """See :class:`Rows`. Errors are SQLite's own.

    Args:
        path: the file; None for the default place, False for rows that end with the process.

    Raises:
        UsageError: the file or its folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | Literal[False] | None) -> None:
        place = default_cache_path() if path is None else Path(path or MEMORY)
        self.path = str(place)
        self._connection = open_in_memory() if path is False else open_cache_file(place)
        self._watch = ClaimWatch()
        self._heart: Heart | None = None

    def one(self, query: str, values: Sequence[Any]) -> Any:
        return self._connection.execute(query, values).fetchone()

    def every(self, query: str, values: Sequence[Any]) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def write(self, statement: str, values: Sequence[Any]) -> None:
        self._connection.execute(statement, values)

    def open_among(self, environment: str, signatures: Sequence[str]) -> list[str]:
        key = "environment = ? AND signature = ?"
        query = f"SELECT 1 FROM measurement WHERE {key} UNION ALL SELECT 1 FROM failure WHERE {key}"
        return [each for each in signatures if self.one(query, (environment, each) * 2) is None]

    def measured(self, environment: str) -> list[str]:
        query = "SELECT signature FROM measurement WHERE environment = ?"
        return [row[0] for row in self._connection.execute(query, (environment,))]

    def claim(self, environment: str, signatures: Sequence[str], most: int, claimant: Claimant) -> list[str]:
        mine = take_claims(self._connection, environment, signatures, most, claimant, self._watch)
        if mine and self.path != MEMORY and claimant[0] == socket.gethostname():
            self._heart = self._heart or Heart(self.path)
            self._heart.claimants.add(claimant)
        return mine

    def holders(self, environment: str, signatures: Sequence[str]) -> list[str]:
        return claim_holders(self._connection, environment, signatures)

    def release(self, environment: str, signatures: Sequence[str]) -> None:
        drop_claims(self._connection, environment, signatures)

    def close(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        self._connection.close()


def facts_in(one: Callable[[str, Sequence[Any]], Any], environment: str, signature: str) -> JsonObject | None:
    """Return all that is stored of a signature, or None; ``one`` gives the first row of a query."""
    query = f"SELECT {FACTS} FROM measurement WHERE environment = ? AND signature = ?"
    row = one(query, (environment, signature))
    return None if row is None else facts_of(*row)
