"""Several processes fill one cache: each claims what it measures next, and the claim of a dead one lapses."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

CREATE_CLAIM = """
CREATE TABLE IF NOT EXISTS claim (
    environment TEXT NOT NULL, signature TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL,
    claimed_at REAL NOT NULL, PRIMARY KEY (environment, signature)
)
"""
_LAPSE_S = 600.0
Claimant: TypeAlias = tuple[str, int, str]
"""Host, process and when that was started."""


class Shared(Protocol):
    """What :func:`fill` needs of a cache."""

    poll_s: float
    """Seconds between looks at what others have finished."""

    def open_among(self, signatures: Sequence[str]) -> list[str]:
        """Return those that are neither measured nor failed."""

    def claim(self, signatures: Sequence[str], most: int) -> list[str]:
        """Claim up to ``most`` that are open and that nobody alive has claimed."""

    def release(self, signatures: Sequence[str]) -> None:
        """Give up claims."""


def fill(
    store: Shared, signatures: Sequence[str], measure: Callable[[list[str]], None], most: int,
    finished: Callable[[str], None] = lambda signature: None,
) -> None:
    """Measure signatures together with every other process that fills the same cache; return when all are there.

    Args:
        store: the cache.
        signatures: what is wanted, in the order to be measured.
        measure: measures the signatures it is given and stores a result or a failure for each.
        most: claimed at a time.
        finished: called with each signature once, when it is there, whoever measured it.
    """
    waiting = list(signatures)
    while True:
        still_open = set(store.open_among(waiting))
        for each in waiting:
            if each not in still_open:
                finished(each)
        waiting = [each for each in waiting if each in still_open]
        if not waiting:
            return
        mine = store.claim(waiting, most)
        if not mine:
            time.sleep(store.poll_s)  # others are at it
            continue
        try:
            measure(mine)
        finally:
            store.release(mine)


def claimant_here() -> Claimant:
    """Return what this process claims as."""
    return socket.gethostname(), os.getpid(), born_at(os.getpid()) or ""


def take_claims(
    connection: sqlite3.Connection, environment: str, signatures: Sequence[str], most: int, claimant: Claimant
) -> list[str]:
    """Claim up to ``most`` signatures in one transaction."""
    mine: list[str] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        for signature in signatures:
            if len(mine) == most:
                break
            key = (environment, signature)
            done = ("SELECT 1 FROM measurement WHERE environment = ? AND signature = ? UNION ALL "
                    "SELECT 1 FROM failure WHERE environment = ? AND signature = ?")
            if connection.execute(done, (*key, *key)).fetchone():
                continue  # finished between the caller's look and now
            row = connection.execute("SELECT host, pid, born, claimed_at FROM claim WHERE environment = ? AND "
                                     "signature = ?", key).fetchone()
            if row is None or (row[0], row[1], row[2]) == tuple(claimant) or _has_lapsed(*row):
                connection.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)",
                                   (*key, *claimant, time.time()))
                mine.append(signature)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise
    return mine


def drop_claims(connection: sqlite3.Connection, environment: str, signatures: Sequence[str]) -> None:
    """Give up claims."""
    connection.executemany("DELETE FROM claim WHERE environment = ? AND signature = ?",
                           [(environment, each) for each in signatures])


def _has_lapsed(host: str, pid: int, born: str, claimed_at: float) -> bool:
    if host == socket.gethostname():
        return born_at(pid) != born
    return time.time() - claimed_at > _LAPSE_S


def born_at(pid: int) -> str | None:
    """Return when a process was started, in the kernel's ticks, so that a number used again is not taken for the old
    process; an empty text where the system does not say, None if it is gone."""
    try:
        # proc(5): the name in parentheses may hold spaces; the state is the first field after it, the start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
