"""Several tables: what each must cover, parts joined into one, and how two differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from layerfold.errors import MissingEntryError, ProvenanceMismatchError, TableError, UsageError
from layerfold.files import JsonObject
from layerfold.tables._csv import read_rows
from layerfold.tables.importance import ImportanceEntry, ImportanceTable
from layerfold.tables.latency import LatencyEntry, LatencyTable
from layerfold.tables.provenance import Provenance, check_same_source

Table = LatencyTable | ImportanceTable
_AnyTable = TypeVar("_AnyTable", LatencyTable, ImportanceTable)
Key = tuple[int | str, ...]
_SOURCE = ("model", "model_hash", "network_hash", "input_shape", "batch", "dtype", "device", "driver", "backend")
_JOINED = (*_SOURCE, "versions", "chains", "options", "backend_options", "date")
_COMPARED = (*_SOURCE, "fixed_ms", "scale", "chains")


def read_table(path: str | Path, *, partial: bool = False) -> Table:
    """Read a latency or an importance table, told apart by their columns.

    Args:
        path: the file.
        partial: whether a latency table may have gaps (a part that one machine filled).
    """
    header, _, _ = read_rows(Path(path), ("st", "end"))
    if "time" in header:
        return LatencyTable.read(path, partial=partial)
    if "st_act" in header or "conv_comb" in header:
        return ImportanceTable.read(path)
    raise TableError(f"{path}: row 1: neither 'time' (latency) nor 'st_act' (importance), expected one of them")


def check_coverage(latency: LatencyTable, importance: ImportanceTable) -> None:
    """Refuse an importance table that lacks a segment of the latency table and does not leave it out on purpose.

    Raises:
        MissingEntryError: names the first such segment.
        TableError: an importance for a segment outside all chains.
        ProvenanceMismatchError: different networks or input shapes.
    """
    check_same_source(
        latency.provenance,
        importance.provenance,
        (latency.source, importance.source),
        ignore=("device", "dtype", "backend", "batch"),
    )
    known = importance.segments.union(importance.provenance.left_out)
    if not latency.segments <= known:
        start, end = min(latency.segments - known)
        raise MissingEntryError(
            f"{importance.source}: no entry for st={start}, end={end}, which {latency.source} has; "
            "estimate it with `layerfold importance`, or name it in left_out"
        )
    for start, end in sorted(importance.segments - latency.segments):
        if not any(chain_start <= start and end <= chain_end for chain_start, chain_end in latency.chains):
            raise TableError(
                f"{importance.source}: segment ({start},{end}) lies in no chain of {latency.source} "
                f"({', '.join(f'{a}..{b}' for a, b in latency.chains)}); is it for another network?"
            )


def merge_tables(tables: Sequence[Table], *, tolerance: float = 0.0) -> Table:
    """Join parts of one table.

    An entry that several parts have must agree within ``tolerance`` (relative to the larger); the mean is kept,
    for latencies weighted by the number of runs.

    Args:
        tables: at least one, all latency or all importance tables.
        tolerance: from 0 to 1.

    Raises:
        TableError: a conflict, named by segment and files; or a whole with gaps.
        ProvenanceMismatchError: parts of different devices, dtypes, backends, input shapes or weights.
    """
    if not tables:
        raise UsageError("tables=[]: expected at least one table to merge")
    first = tables[0]
    for other in tables[1:]:
        if type(other) is not type(first):
            raise TableError(
                f"{first.source} and {other.source}: a latency and an importance table, expected parts alike"
            )
        check_same_source(first.provenance, other.provenance, (first.source, other.source))
        hashes = (first.provenance.model_hash, other.provenance.model_hash)
        if isinstance(first, ImportanceTable) and all(hashes) and hashes[0] != hashes[1]:
            raise ProvenanceMismatchError(
                f"{first.source} and {other.source}: model_hash differs ({hashes[0]} and {hashes[1]}); importances "
                "of different weights are never mixed"
            )
    provenance = _joined_provenance(tables)
    if isinstance(first, LatencyTable):
        latencies = _joined([table for table in tables if isinstance(table, LatencyTable)], tolerance)
        return LatencyTable(latencies, provenance=provenance, source="merged table")
    importances = _joined([table for table in tables if isinstance(table, ImportanceTable)], tolerance)
    return ImportanceTable(importances, provenance=provenance, source="merged table")


def _joined(tables: Sequence[_AnyTable], tolerance: float) -> list[Any]:
    alike: dict[Key, list[tuple[Any, str]]] = {}
    for table in tables:
        for entry in table.entries:
            alike.setdefault(entry.key, []).append((entry, table.source))
    found = []
    for key in sorted(alike):
        entries = [entry for entry, _ in alike[key]]
        values = [_value(entry) for entry in entries]
        low, high = min(values), max(values)
        if high - low > tolerance * max(abs(low), abs(high)):
            low_file = alike[key][values.index(low)][1]
            high_file = alike[key][values.index(high)][1]
            raise TableError(
                f"{_name(key)}: {low!r} in {low_file} and {high!r} in {high_file}, expected equal values within "
                f"{100 * tolerance:g} %; measure it again, or allow more with --tolerance"
            )
        found.append(_mean_entry(entries, values))
    return found


def _mean_entry(entries: list[Any], values: list[float]) -> Any:
    first = entries[0]
    if len(entries) == 1 or min(values) == max(values):
        return first
    if isinstance(first, LatencyEntry):
        weights = [max(entry.runs, 1) for entry in entries]
        mean = math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
        # Within-part variance and the parts' distance from the mean.
        variance = math.fsum(
            weight * (entry.spread_ms**2 + (value - mean) ** 2)
            for entry, value, weight in zip(entries, values, weights, strict=True)
        ) / sum(weights)
        return replace(first, latency_ms=mean, spread_ms=math.sqrt(variance), runs=sum(entry.runs for entry in entries))
    return replace(first, importance=math.fsum(values) / len(values))


def _joined_provenance(tables: Sequence[Table]) -> Provenance:
    """Take what the first table that knows it says; a segment is left out only if no part has it."""
    changes: dict[str, Any] = {}
    first = tables[0].provenance
    for name in _JOINED:
        changes[name] = next(
            (value for table in tables if (value := getattr(table.provenance, name)) not in ("", None, (), {})),
            getattr(first, name),
        )
    calibrated = [table.provenance for table in tables if table.provenance.fixed_ms or table.provenance.scale != 1.0]
    for each in calibrated[1:]:
        if (each.fixed_ms, each.scale) != (calibrated[0].fixed_ms, calibrated[0].scale):
            raise ProvenanceMismatchError(
                f"parts: fixed_ms and scale differ ({calibrated[0].fixed_ms:g}, {calibrated[0].scale:g} and "
                f"{each.fixed_ms:g}, {each.scale:g}); calibrate again after merging"
            )
    if calibrated:
        changes.update(fixed_ms=calibrated[0].fixed_ms, scale=calibrated[0].scale)
    have = {segment for table in tables for segment in table.segments}
    left_out = {segment for table in tables for segment in table.provenance.left_out}
    return replace(first, **changes, left_out=tuple(sorted(left_out - have)))


@dataclass(frozen=True, kw_only=True)
class TableDifference:
    """What :func:`diff_tables` finds.

    Attributes:
        names: the two files.
        only_first, only_second: keys that one table alone has.
        changed: (key, first value, second value) where they differ, largest relative change first.
        num_equal: entries of equal value.
        provenance: name of a field to its two values, where both know it and they differ.
    """

    names: tuple[str, str]
    only_first: tuple[Key, ...]
    only_second: tuple[Key, ...]
    changed: tuple[tuple[Key, float, float], ...]
    num_equal: int
    provenance: dict[str, tuple[Any, Any]]

    def lines(self, most: int = 10) -> list[str]:
        """Return the difference as lines of text."""
        found = [
            f"{self.num_equal} equal, {len(self.changed)} changed, {len(self.only_first)} only in {self.names[0]}, "
            f"{len(self.only_second)} only in {self.names[1]}"
        ]
        found += [f"{name}: {first} | {second}" for name, (first, second) in self.provenance.items()]
        for key, first, second in self.changed[:most]:
            ratio = f" ({100 * (second / first - 1):+.2f} %)" if first else ""
            found.append(f"{_name(key)}: {first:.6g} -> {second:.6g}{ratio}")
        for name, keys in zip(self.names, (self.only_first, self.only_second), strict=True):
            found += [f"only in {name}: {_name(key)}" for key in keys[:most]]
        return found

    def to_json(self) -> JsonObject:
        """Return the whole difference, ready for ``json.dumps``."""
        return {
            "files": list(self.names),
            "equal": self.num_equal,
            "changed": [{"key": list(key), "values": [first, second]} for key, first, second in self.changed],
            "only": [[list(key) for key in keys] for keys in (self.only_first, self.only_second)],
            "provenance": {name: list(values) for name, values in self.provenance.items()},
        }


def diff_tables(first: Table, second: Table) -> TableDifference:
    """Compare two tables of the same kind, entry by entry and in where they come from."""
    ours = {entry.key: _value(entry) for entry in first.entries}
    theirs = {entry.key: _value(entry) for entry in second.entries}
    both = sorted(set(ours) & set(theirs))
    changed = [(key, ours[key], theirs[key]) for key in both if ours[key] != theirs[key]]
    changed.sort(key=lambda each: (-abs(each[2] - each[1]) / max(abs(each[1]), abs(each[2])), each[0]))
    provenance = {}
    for name in _COMPARED:
        values = getattr(first.provenance, name), getattr(second.provenance, name)
        if values[0] != values[1] and all(value not in ("", None, ()) for value in values):
            provenance[name] = values
    return TableDifference(
        names=(first.source, second.source),
        only_first=tuple(sorted(set(ours) - set(theirs))),
        only_second=tuple(sorted(set(theirs) - set(ours))),
        changed=tuple(changed),
        num_equal=len(both) - len(changed),
        provenance=provenance,
    )


def _value(entry: LatencyEntry | ImportanceEntry) -> float:
    return entry.importance if isinstance(entry, ImportanceEntry) else entry.latency_ms


def _name(key: Key) -> str:
    positions = [value for value in key if isinstance(value, int)]
    parts = [f"{name}={value}" for name, value in zip(("st", "end", "st_act", "end_act"), positions, strict=False)]
    return ", ".join(parts + [f"merged={value}" for value in key if isinstance(value, str)])
