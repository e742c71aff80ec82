"""Several processes fill one cache: each claims what it measures next, and the claim of a dead one lapses."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from layerfold.profiler.store.transaction import transaction
from layerfold.terminal import one_line

CREATE_CLAIM = """
CREATE TABLE IF NOT EXISTS claim (
    environment TEXT NOT NULL, signature TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL,
    claimed_at REAL NOT NULL, PRIMARY KEY (environment, signature)
)
"""
RENEW_S = 10.0
"""A process that measures says this often that it lives: its claims get the present time."""
LAPSE_S = 40.0
"""A claim of another machine that has not changed while it was watched for so long is that of a dead process."""
_SAY_AFTER_S = 5.0
_SAY_AGAIN_S = 60.0
Claimant: TypeAlias = tuple[str, int, str]
"""Host, process and when that was started."""


class SharedStore(Protocol):
    """Cache as :func:`fill` needs it."""

    poll_s: float
    """Seconds between looks at what others have finished."""

    def open_among(self, signatures: Sequence[str]) -> list[str]:
        """Return those that are neither measured nor failed."""

    def claim(self, signatures: Sequence[str], most: int) -> list[str]:
        """Claim up to ``most`` that are open and that nobody alive has claimed."""

    def holders(self, signatures: Sequence[str]) -> list[str]:
        """Return which other processes have claimed any of them, in words."""

    def release(self, signatures: Sequence[str]) -> None:
        """Give up claims."""


def fill(
    store: SharedStore,
    signatures: Sequence[str],
    measure: Callable[[list[str]], None],
    most: int,
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
    say_at = time.monotonic() + _SAY_AFTER_S
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
            if time.monotonic() >= say_at and (holders := store.holders(waiting)):
                print(
                    f"layerfold: note: waiting for {' and '.join(holders)}, which measures what is wanted here too; "
                    f"after {LAPSE_S:.0f} s without a sign of life it is taken over",
                    file=sys.stderr,
                    flush=True,
                )
                say_at = time.monotonic() + _SAY_AGAIN_S
            time.sleep(store.poll_s)  # others are at it
            continue
        say_at = time.monotonic() + _SAY_AFTER_S
        try:
            measure(mine)
        finally:
            store.release(mine)


def claimant_here() -> Claimant:
    """Return what this process claims as."""
    return socket.gethostname(), os.getpid(), born_at(os.getpid()) or ""


class ClaimWatch:
    """Claims of other machines as they were last seen to change, by this process's own clock.

    Clocks of two machines need not agree, and whether a process of another one lives cannot be asked. But a living one
    renews its claims: what does not change while it is watched is dead.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[tuple[object, ...], float]] = {}

    def is_dead(self, key: tuple[str, str], claim: tuple[object, ...]) -> bool:
        """Say whether a claim has stood unchanged for ``LAPSE_S`` since it was first seen so."""
        before = self._seen.get(key)
        if before is None or before[0] != claim:
            self._seen[key] = claim, time.monotonic()
            return False
        return time.monotonic() - before[1] > LAPSE_S


class Heart:
    """Renews the claims of this machine's processes in the background, on a connection of its own, until stopped."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.claimants: set[Claimant] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="layerfold claims", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=10.0)

    def _beat(self) -> None:
        statement = "UPDATE claim SET claimed_at = ? WHERE host = ? AND pid = ? AND born = ?"
        while not self._stopped.wait(RENEW_S):
            with contextlib.suppress(sqlite3.Error):  # a full disk: whoever measures will say so
                connection = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
                try:
                    # Nothing is lost if a power cut undoes it, and a sync would disturb what is being timed.
                    connection.execute("PRAGMA synchronous = OFF")
                    for claimant in list(self.claimants):
                        if born_at(claimant[1]) == claimant[2]:  # a worker that has died no longer counts
                            connection.execute(statement, (time.time(), *claimant))
                finally:
                    connection.close()


def claim_holders(connection: sqlite3.Connection, environment: str, signatures: Sequence[str]) -> list[str]:
    """Return which other processes have claimed any of the signatures, in words."""
    rows = connection.execute("SELECT signature, host, pid, born FROM claim WHERE environment = ?", (environment,))
    wanted, here = set(signatures), claimant_here()
    found = {(host, pid) for signature, host, pid, born in rows if signature in wanted and (host, pid, born) != here}
    return [
        f"process {pid} on {one_line(str(host), most=60) or 'a machine without a name'}"
        for host, pid in sorted(found, key=str)
    ]


def take_claims(
    connection: sqlite3.Connection,
    environment: str,
    signatures: Sequence[str],
    most: int,
    claimant: Claimant,
    watch: ClaimWatch,
) -> list[str]:
    """Claim up to ``most`` signatures in one transaction."""
    mine: list[str] = []
    with transaction(connection):
        for signature in signatures:
            if len(mine) == most:
                break
            key = (environment, signature)
            done = (
                "SELECT 1 FROM measurement WHERE environment = ? AND signature = ? UNION ALL "
                "SELECT 1 FROM failure WHERE environment = ? AND signature = ?"
            )
            if connection.execute(done, (*key, *key)).fetchone():
                continue  # finished between the caller's look and now
            row = connection.execute(
                "SELECT host, pid, born, claimed_at FROM claim WHERE environment = ? AND signature = ?", key
            ).fetchone()
            if row is None or (row[0], row[1], row[2]) == tuple(claimant) or _has_lapsed(key, row, watch):
                connection.execute(
                    "INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)", (*key, *claimant, time.time())
                )
                mine.append(signature)
    return mine


def drop_claims(connection: sqlite3.Connection, environment: str, signatures: Sequence[str]) -> None:
    """Give up claims."""
    connection.executemany(
        "DELETE FROM claim WHERE environment = ? AND signature = ?", [(environment, each) for each in signatures]
    )


def _has_lapsed(key: tuple[str, str], claim: tuple[object, ...], watch: ClaimWatch) -> bool:
    host, pid, born = claim[:3]
    if host == socket.gethostname() and isinstance(pid, int):
        return born_at(pid) != born
    return watch.is_dead(key, claim)


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
