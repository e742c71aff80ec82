"""Measurements that outlive a run: one SQLite row each, written the moment it is finished.

A row is keyed by its *environment* (device, driver, backend, versions, options, dtype, batch: canonical JSON) and
by the signature of what was measured. A killed run goes on where it stopped; another network on the same
device pays only for signatures not seen before. Beside the result each row keeps the summary of its blocks and the
conditions it was measured under; a graph that the backend refuses is kept with the reason, and not tried again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from layerfold.errors import ProfilerError
from layerfold.files import JsonObject
from layerfold.profiler.backends import Backend, is_gpu
from layerfold.profiler.machine.conditions import Conditions, Watch
from layerfold.profiler.store.checked import Reading, facts_of, reading_of
from layerfold.profiler.store.claims import claimant_here
from layerfold.profiler.store.environment import environment_of
from layerfold.profiler.store.file import FILE_NAME as FILE_NAME
from layerfold.profiler.store.file import INSERT
from layerfold.profiler.store.file import default_cache_path as default_cache_path
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.store.report import RunReport
from layerfold.profiler.store.rows import FACTS, RowFile, Rows, facts_in
from layerfold.profiler.timing.measurement import Measurement
from layerfold.profiler.timing.ratio import MeasuredRatio

_POLL_S = 0.02
_EVERY = f"SELECT signature, {FACTS} FROM measurement WHERE environment = ?"
_READ = "SELECT kind, summary FROM measurement WHERE environment = ? AND signature = ?"


class MeasurementCache:
    """An open cache for one environment, and what this run has found and measured.

    A file of schema 2 is brought up to date. One of another schema, or that is no such database, is moved aside and a
    new one begun, with one line on stderr.

    Args:
        path: the file; None for the default place, False for a cache that ends with the process. Missing folders are
            made.
        environment: what the measurements depend on besides their signature.
        log: a text file that gets one line for each measurement and each failed build, the moment it is stored.
        has_gpu: whether the conditions to watch are a GPU's too.
        rows: of a file that another process has, in place of ``path``.

    Raises:
        UsageError: the file or its folder cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Literal[False] | None,
        environment: Mapping[str, object],
        *,
        log: TextIO | None = None,
        has_gpu: bool = False,
        rows: Rows | None = None,
    ) -> None:
        self._environment = json.dumps(environment, sort_keys=True)
        self._rows = RowFile(path) if rows is None else rows
        self.path = Path(self._rows.path)
        self.poll_s = _POLL_S
        self.watch = Watch(has_gpu=has_gpu)
        self._lap = Watch(reference=None)
        self._lap_began = time.perf_counter()
        self.report = RunReport(log=log)
        if rows is None:
            self._drop_damaged()

    def get(self, signature: str) -> Measurement | None:
        """Return the stored latency, or None."""
        found = self.look_up(signature)
        return found if isinstance(found, Measurement) else None

    def get_ratio(self, signature: str) -> MeasuredRatio | None:
        """Return the stored ratio, or None."""
        found = self.look_up(signature)
        return found if isinstance(found, MeasuredRatio) else None

    def look_up(self, signature: str) -> Reading | None:
        """Return what is stored, or None."""
        row = self._one(_READ, signature)
        if row is None:
            return None
        found = reading_of(*row)
        if found is None:
            self._drop([signature])
            return None
        self.report.found(signature, found)
        return found

    def put(
        self,
        signature: str,
        reading: Reading,
        *,
        kind: Kind = Kind.ALONE,
        network: str = "",
        build_s: float | None = None,
    ) -> None:
        """Store a measurement at once; an older one of the same signature is replaced.

        Args:
            signature: what was measured.
            reading: the result; a ratio if that is the kind.
            kind: of the measurement.
            network: hash of the network that it belongs to alone, if it does.
            build_s: seconds that compiling took, if known.

        Raises:
            ProfilerError: the disk is full or the file has become unwritable; what was stored before stays.
        """
        assert kind.is_ratio == isinstance(reading, MeasuredRatio)
        took_s = time.perf_counter() - self._lap_began
        conditions = json.dumps(self._lap.conditions().to_json())
        self._lap, self._lap_began = Watch(reference=None), time.perf_counter()
        summary = json.dumps(reading.to_json())
        times = time.time(), took_s, build_s
        self._write(INSERT, (self._environment, signature, kind.value, network, *times, summary, conditions))
        self.report.measured(signature, reading, build_s)
        self.watch.sample()

    def failure(self, signature: str) -> str | None:
        """Return why a signature could not be built, or None if it was not tried or could be."""
        row = self._one("SELECT reason FROM failure WHERE environment = ? AND signature = ?", signature)
        if row is None:
            return None
        self.report.failed(signature, row[0], is_new=False)
        return str(row[0])

    def put_failure(self, signature: str, reason: str) -> None:
        """Store that a signature cannot be built, and why."""
        self._write(
            "INSERT OR REPLACE INTO failure VALUES (?, ?, ?, ?)", (self._environment, signature, reason, time.time())
        )
        self.report.failed(signature, reason, is_new=True)

    def forget_failures(self) -> None:
        """Let everything that failed be tried again."""
        self._write("DELETE FROM failure WHERE environment = ?", (self._environment,))

    def open_among(self, signatures: Sequence[str]) -> list[str]:
        """Return the signatures that are neither measured nor failed."""
        try:
            return self._rows.open_among(self._environment, signatures)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def measured(self) -> list[str]:
        """Return every signature that is measured."""
        try:
            return self._rows.measured(self._environment)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def holders(self, signatures: Sequence[str]) -> list[str]:
        """Return which other processes have claimed any of the signatures, in words."""
        try:
            return self._rows.holders(self._environment, signatures)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def claim(self, signatures: Sequence[str], most: int) -> list[str]:
        """Claim up to ``most`` signatures that are open and that no process alive has claimed."""
        try:
            return self._rows.claim(self._environment, signatures, most, claimant_here())
        except sqlite3.Error as error:
            raise self._unwritable(error) from error

    def release(self, signatures: Sequence[str]) -> None:
        """Give up claims; one that cannot be given up lapses with this process."""
        try:
            self._rows.release(self._environment, signatures)
        except sqlite3.Error:
            return

    def conditions(self) -> Conditions | None:
        """Return under what conditions this run measured; None where nothing did."""
        return self.watch.conditions()

    def summaries(self, signatures: Iterable[str]) -> dict[str, JsonObject]:
        """Return all that is stored of signatures: the result, the summary of its blocks, the conditions."""
        return {
            signature: found
            for signature in signatures
            if (found := facts_in(self._rows.one, self._environment, signature)) is not None
        }

    def close(self) -> None:
        """Close the file; the rows are there already."""
        self._rows.close()

    def _drop_damaged(self) -> None:
        """Forget what is no measurement any more, so that it is measured again; the others stay."""
        try:
            rows = self._rows.every(_EVERY, (self._environment,))
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        self._drop([str(signature) for signature, *values in rows if facts_of(*values) is None])

    def _drop(self, signatures: Sequence[str]) -> None:
        if not signatures:
            return
        for signature in signatures:
            self._write(
                "DELETE FROM measurement WHERE environment = ? AND signature = ?", (self._environment, signature)
            )
        many = len(signatures) > 1
        print(
            f"layerfold: note: the cache {self.path}: {len(signatures)} measurement{'s' if many else ''} in it "
            f"{'are' if many else 'is'} damaged and made again; the others are kept",
            file=sys.stderr,
        )

    def _one(self, query: str, signature: str) -> Any:
        try:
            return self._rows.one(query, (self._environment, signature))
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _write(self, statement: str, values: Sequence[Any]) -> None:
        try:
            self._rows.write(statement, values)
        except sqlite3.Error as error:
            raise self._unwritable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> ProfilerError:
        return ProfilerError(f"cache={str(self.path)!r} cannot be read: {error}; move it away")

    def _unwritable(self, error: sqlite3.Error) -> ProfilerError:
        return ProfilerError(
            f"cache={str(self.path)!r} cannot be written: {error}; earlier measurements are kept: "
            "make room there and run again to go on"
        )

    def __enter__(self) -> MeasurementCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_cache(
    path: str | os.PathLike[str] | Literal[False] | None,
    backend: Backend,
    *,
    batch: int = 1,
    dtype: str = "float32",
    log: TextIO | None = None,
) -> MeasurementCache:
    """Open the cache of finished measurements for a backend.

    Args:
        path: the file; None for the default place, False for a cache that ends with the process.
        backend: what measures.
        batch, dtype: of every graph.
        log: a text file that gets one line per measurement: median, interval, blocks, build time, settled or not.

    Raises:
        UsageError: the file or its folder cannot be written.
    """
    environment = environment_of(backend, batch=batch, dtype=dtype)
    return MeasurementCache(path, environment, log=log, has_gpu=is_gpu(backend))
