"""The latency table: measured milliseconds of every segment."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from layerfold.arguments import shown
from layerfold.errors import MissingEntryError, TableError
from layerfold.tables._changes import change_cells, levers_of, set_change, with_changes
from layerfold.tables._csv import LARGEST, read_rows, write_rows
from layerfold.tables.fields import LARGEST_POSITION, check_chain, entries_of, make_plain, positions
from layerfold.tables.kernel import IDENTITY, SegmentKey, is_kernel_text
from layerfold.tables.levers import Change, lever_of
from layerfold.tables.provenance import Provenance

if TYPE_CHECKING:
    from layerfold.solver import Solution

_COLUMNS = ("id", "st", "end", "time", "stdev", "st_act", "end_act", "signature", "runs")
_DROP_COLUMNS = (*_COLUMNS[:3], "ker", "str", "is_dw", *_COLUMNS[3:], "merged", "conv_comb")
"""In the order of LayerMerge's tables."""


class HasMergePositions(Protocol):
    """What a solution must have for its latency to be predicted."""

    @property
    def merge_pos(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class LatencyEntry:
    """The latency of one segment, layers start+1..end merged into one conv; perhaps without some of them.

    Attributes:
        start, end: positions, 0 <= start < end.
        latency_ms: median of one forward pass, above 0; 0 only where nothing stays.
        spread_ms: standard deviation of that number, at least 0; 0 where unknown.
        start_act, end_act: whether the measured segment had an activation before and behind it; None if unknown.
        signature: what decides the latency (``Segment.signature``); empty if unknown.
        runs: number of timed forward passes; 0 if unknown.
        macs, params: multiply-adds of one image and parameters of the merged conv; None: read from the signature.
        breaks: in a table of optimal latencies, where merging stops from ``start`` to ``end``, both included.
        merged: the merged kernel (``layerfold.tables.kernel``); empty if unknown. Must be known where layers are
            changed: it is what tells the options of one segment apart.
        kept: layers that stayed where it was measured (others that merge into the same kernel take as long); None for
            every one, or, with ``drops``, where the table does not say.
        drops: whether layers are dropped; follows from ``kept`` where that is given.
        change: what a lever changed where it was measured; None for nothing. Follows from ``kept`` and ``drops`` where
            layers are dropped.

    Example:
        >>> entry = lf.LatencyEntry(start=1, end=3, latency_ms=1.2)
        >>> entry.key
        (1, 3)
    """

    start: int
    end: int
    latency_ms: float
    spread_ms: float = 0.0
    start_act: int | None = None
    end_act: int | None = None
    signature: str = ""
    runs: int = 0
    macs: int | None = None
    params: int | None = None
    breaks: tuple[int, ...] | None = None
    merged: str = ""
    kept: tuple[int, ...] | None = None
    drops: bool = False
    change: Change | None = None

    @property
    def key(self) -> SegmentKey:
        """(start, end), and the merged kernel where layers are changed."""
        return (self.start, self.end) if self.change is None else (self.start, self.end, self.merged)

    @property
    def dropped(self) -> tuple[int, ...] | None:
        """The layers that do not stay, rising; None where some are dropped and it is not known which."""
        return self.change.layers if self.drops and self.change is not None else ()

    def __post_init__(self) -> None:
        make_plain(
            self,
            wholes=("start", "end", "start_act", "end_act", "runs", "macs", "params"),
            flags=("drops",),
            numbers=("latency_ms", "spread_ms"),
            texts=("signature", "merged"),
            lists=("breaks", "kept"),
            optional=("start_act", "end_act", "macs", "params"),
        )
        if not 0 <= self.start < self.end <= LARGEST_POSITION:
            raise TableError(
                f"latency entry st={shown(self.start)}, end={shown(self.end)}: expected 0 <= st < end <= 1000000"
            )
        for name in ("runs", "macs", "params"):
            if not 0 <= (getattr(self, name) or 0) < 10**18:
                raise TableError(
                    f"latency entry ({self.start},{self.end}): {name}={shown(getattr(self, name))}, expected a whole "
                    "number from 0 to 1e18"
                )
        set_change(self, drops=self.drops)
        if self.change is not None and not is_kernel_text(self.merged):
            raise TableError(
                f"latency entry ({self.start},{self.end}): merged={self.merged!r}, expected the kernel that the layers "
                "which stay merge into, such as '3x3' or 'identity'"
            )
        if not (0.0 < self.latency_ms <= LARGEST) and not (self.latency_ms == 0.0 and self.merged == IDENTITY):
            raise TableError(
                f"latency entry ({self.start},{self.end}): latency_ms={self.latency_ms!r}, "
                "expected milliseconds above 0 and at most 1e9"
            )
        if not (0.0 <= self.spread_ms <= LARGEST):
            raise TableError(
                f"latency entry ({self.start},{self.end}): spread_ms={self.spread_ms!r}, "
                "expected milliseconds from 0 to 1e9"
            )


class LatencyTable:
    """Latencies of segments, each segment once, and where they were measured.

    Args:
        entries: at least one; together they must lead from each chain's start to its end.
        provenance: what the sidecar says; unknown by default, and then there is one chain from the least
            start to the greatest end, a fixed part of 0 ms and a scale of 1.
        source: name of the file, for error lines.
        partial: allow gaps, for a part that one machine filled.

    Raises:
        TableError: a repeated segment, one outside all chains, or a gap that makes a chain's end unreachable.

    Example:
        >>> latency
        LatencyTable(6 entries, chains=[(0, 3)], source='latency table')
        >>> latency.entry(1, 3).latency_ms
        1.2
        >>> latency.original_ms, latency.predict_ms(solution)
        (4.0, 3.2)
        >>> latency.write("latency.csv")
        >>> lf.LatencyTable.read("latency.csv").original_ms
        4.0
    """

    def __init__(
        self,
        entries: Iterable[LatencyEntry],
        *,
        provenance: Provenance | None = None,
        source: str = "latency table",
        partial: bool = False,
    ) -> None:
        self.entries: tuple[LatencyEntry, ...] = entries_of(entries, LatencyEntry)
        self.provenance = provenance or Provenance(kind="latency")
        self.source = source
        if not self.entries:
            raise TableError(f"{source}: no entries; expected one for each segment")
        self._by_key: dict[SegmentKey, LatencyEntry] = {}
        for entry in self.entries:
            if self._by_key.setdefault(entry.key, entry) is not entry:
                raise TableError(f"{source}: {_name(entry.key)} given twice, expected once")
        for chain in self.chains:
            check_chain(chain, source)
        if not partial:
            self._check_chains()

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"LatencyTable({len(self.entries)} entries, chains={list(self.chains)}, source={self.source!r})"

    @cached_property
    def chains(self) -> tuple[tuple[int, int], ...]:
        """(start, end) of every chain."""
        if self.provenance.chains:
            return self.provenance.chains
        return ((min(entry.start for entry in self.entries), max(entry.end for entry in self.entries)),)

    @cached_property
    def segments(self) -> frozenset[tuple[int, int]]:
        """Every (start, end) that has an entry in which no layer is changed."""
        return frozenset((entry.start, entry.end) for entry in self.entries if entry.change is None)

    @cached_property
    def keys(self) -> frozenset[SegmentKey]:
        """Every :attr:`LatencyEntry.key`."""
        return frozenset(self._by_key)

    @cached_property
    def hash(self) -> str:
        """Hash of the numbers, whatever the order of the rows."""
        rows = sorted(
            (entry.start, entry.end, entry.latency_ms, entry.spread_ms, *entry.key[2:]) for entry in self.entries
        )
        return hashlib.sha256(repr((rows, self.provenance.fixed_ms, self.provenance.scale)).encode()).hexdigest()[:16]

    def entry(self, start: int, end: int) -> LatencyEntry:
        """Return the entry of layers start+1..end, none changed, or raise MissingEntryError."""
        return self.at((start, end))

    def at(self, key: SegmentKey) -> LatencyEntry:
        """Return the entry of a key, or raise MissingEntryError."""
        found = self._by_key.get(key)
        if found is None:
            raise MissingEntryError(
                f"{self.source}: no entry for {_name(key)}; it is no candidate of this table, "
                "choose another or profile it"
            )
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def segments_of(self, merge_pos: Iterable[int]) -> list[tuple[int, int]]:
        """Return the segments between the positions of ``merge_pos``; every chain's end is implied."""
        stops = sorted(set(positions("merge_pos", merge_pos)))
        found = []
        for start, end in self.chains:
            inner = [start, *(stop for stop in stops if start < stop < end), end]
            found += list(itertools.pairwise(inner))
        return found

    def predict_ms(self, solution: Solution | HasMergePositions) -> float:
        """Return the end-to-end latency of a solution: fixed + scale * sum of its segments' entries."""
        return self.end_to_end_ms(self.sum_ms(self.keys_of(solution)))

    def keys_of(self, solution: Solution | HasMergePositions) -> list[SegmentKey]:
        """Return the keys of a solution's segments.

        What changed layers merge into is taken from the solution's own segments; where it has none, as one written by
        hand, from the entry that was measured with these layers.

        Raises:
            MissingEntryError: no such entry is known.
        """
        segments = self.segments_of(solution.merge_pos)
        if not hasattr(solution, "changes_within"):  # it only says where merging stops
            return list(segments)
        kernels = {(each.start, each.end): each.kernel for each in getattr(solution, "segments", ())}
        found: list[SegmentKey] = []
        for start, end in segments:
            changes = solution.changes_within(start, end)
            if not changes:
                found.append((start, end))
            elif kernels.get((start, end)):
                found.append((start, end, kernels[start, end]))
            else:
                found.append(self._measured_with(start, end, changes))
        return found

    def _measured_with(self, start: int, end: int, changes: list[Change]) -> SegmentKey:
        for entry in self.entries:
            if (entry.start, entry.end) == (start, end) and [entry.change] == changes:
                return entry.key
        what = " and ".join(lever_of(each.word).phrase(each) for each in changes)
        raise MissingEntryError(
            f"{self.source}: no entry for segment ({start},{end}) {what}; profile the network with this lever, or "
            "choose layers that were measured"
        )

    def sum_ms(self, keys: Iterable[SegmentKey]) -> float:
        """Return the exactly rounded sum of the entries of these keys."""
        return math.fsum(self.at(key).latency_ms for key in keys)

    def end_to_end_ms(self, sum_ms: float) -> float:
        """Turn a sum of entries into an end-to-end latency."""
        return self.provenance.fixed_ms + self.provenance.scale * sum_ms

    @cached_property
    def original_ms(self) -> float:
        """Predicted end-to-end latency of the original network: every layer on its own."""
        singles = [(position, position + 1) for start, end in self.chains for position in range(start, end)]
        return self.end_to_end_ms(self.sum_ms(singles))

    def useful_segments(self) -> tuple[tuple[int, int], ...]:
        """Return the segments whose own latency is strictly below the best sum over proper breaks, by (start, end).

        The others need no importance: merging them in parts is at least as fast. Single layers are always in.
        """
        return self._useful_and_best[0]

    def useful_changes(self) -> tuple[SegmentKey, ...]:
        """Return the keys of entries with changed layers that are strictly faster than the stretch with its own layers.

        The others need no importance: what changes no layer, merged or in parts, is at least as fast.
        """
        best = self._useful_and_best[1]
        return tuple(
            entry.key
            for entry in self.entries
            if entry.change is not None and entry.latency_ms < best.get((entry.start, entry.end), math.inf)
        )

    @cached_property
    def _useful_and_best(self) -> tuple[tuple[tuple[int, int], ...], dict[tuple[int, int], float]]:
        """Useful segments, and the least latency of each stretch with its own layers, merged or in parts."""
        best: dict[tuple[int, int], float] = {}
        useful = []
        by_end: dict[int, list[LatencyEntry]] = {}
        for entry in self.entries:
            if entry.change is None:
                by_end.setdefault(entry.end, []).append(entry)
        for chain_start, chain_end in self.chains:
            for start in range(chain_start, chain_end):
                best[start, start] = 0.0
                for end in range(start + 1, chain_end + 1):
                    own, parts = math.inf, math.inf
                    for entry in by_end.get(end, ()):
                        if entry.start == start:
                            own = entry.latency_ms
                        elif entry.start > start and (start, entry.start) in best:
                            parts = min(parts, best[start, entry.start] + entry.latency_ms)
                    if own < math.inf or parts < math.inf:
                        best[start, end] = min(own, parts)
                    if own < parts or (own < math.inf and end == start + 1):
                        useful.append((start, end))
        return tuple(sorted(useful)), best

    @classmethod
    def read(cls, path: str | Path, *, partial: bool = False) -> LatencyTable:
        """Read a latency table, ours or a published one (its first columns), or one of optimal latencies.

        LayerMerge's tables have several rows per segment, told apart by ``ker``, ``str`` and ``is_dw``. Of these the
        largest kernel is the one that keeps every layer.

        Args:
            path: the CSV file; provenance is read from ``<name>.csv.json`` if there is one.
            partial: allow gaps.

        Raises:
            TableError: one line with file, row, column, what is wrong, what was expected.
        """
        _, rows, provenance = read_rows(Path(path), ("st", "end", "time"))
        entries = []
        seen: dict[SegmentKey, int] = {}
        for row, merged, change in with_changes(rows, must_say=False):
            start, end = row.position("st"), row.position("end")
            key: SegmentKey = (start, end) if change is None else (start, end, merged)
            if key in seen:
                name = f"({start},{end})" if len(key) == 2 else f"({start},{end}) merged into {merged}"
                raise row.error("st", f"each segment once; {name} stands in row {seen[key]} too")
            seen[key] = row.number
            has_spread = row.cells.get("stdev", "") != ""
            above_0 = merged != IDENTITY
            entries.append(
                LatencyEntry(
                    start=start,
                    end=end,
                    merged=merged,
                    change=change,
                    latency_ms=row.number_in("time", 0.0, "milliseconds above 0 and at most 1e9", open_end=above_0),
                    spread_ms=row.number_in("stdev", 0.0, "milliseconds from 0 to 1e9") if has_spread else 0.0,
                    start_act=row.optional_state("st_act"),
                    end_act=row.optional_state("end_act"),
                    signature=row.text("signature"),
                    runs=row.count("runs") or 0,
                    macs=row.count("macs"),
                    params=row.count("params"),
                    breaks=row.breaks("breaks", start, end),
                )
            )
        return cls(entries, provenance=provenance, source=str(path), partial=partial)

    def write(self, path: str | Path) -> None:
        """Write the CSV and its sidecar; tables of optimal latencies get the published columns and ``breaks``."""
        header: tuple[str, ...] = _DROP_COLUMNS if any(entry.drops for entry in self.entries) else _COLUMNS
        levers = levers_of(entry.change for entry in self.entries)
        header += tuple(column for lever in levers for column in lever.columns if column not in header)
        if all(entry.breaks is not None for entry in self.entries):
            header = (*_COLUMNS[:5], "breaks")
        header += tuple(
            name for name in ("macs", "params") if any(getattr(entry, name) is not None for entry in self.entries)
        )
        rows = []
        for index, entry in enumerate(self.entries):
            cells = {
                "id": index,
                "st": entry.start,
                "end": entry.end,
                "time": entry.latency_ms,
                "stdev": entry.spread_ms,
                "st_act": entry.start_act,
                "end_act": entry.end_act,
                "signature": entry.signature,
                "runs": entry.runs,
                "macs": entry.macs,
                "params": entry.params,
                "breaks": entry.breaks,
                **change_cells(entry, levers),
            }
            rows.append([cells[name] for name in header])
        write_rows(Path(path), header, rows, replace(self.provenance, kind=self.provenance.kind or "latency"))

    def _check_chains(self) -> None:
        starts = [start for start, _ in self.chains]
        reached = [{start} for start in starts]
        for entry in sorted(self.entries, key=lambda each: (each.start, each.end)):
            place = bisect.bisect_right(starts, entry.start) - 1
            if place < 0 or entry.end > self.chains[place][1]:
                known = ", ".join(f"{start}..{end}" for start, end in self.chains[:20])
                raise TableError(
                    f"{self.source}: segment ({entry.start},{entry.end}) lies in no chain; expected one inside {known}"
                )
            if entry.start in reached[place]:
                reached[place].add(entry.end)
        for (start, end), there in zip(self.chains, reached, strict=True):
            if end not in there:
                raise TableError(
                    f"{self.source}: no entries lead from {start} to {end}, the last position reached is "
                    f"{max(there)}; expected entries that join up (missing rows?)"
                )


def check_entries(tables: Sequence[LatencyTable]) -> None:
    """Refuse latency tables of several devices that do not cover the same segments."""
    first = tables[0]
    for other in tables[1:]:
        if first.chains != other.chains:
            raise TableError(f"{first.source} and {other.source}: chains differ ({first.chains} and {other.chains})")
        for key in sorted(first.keys ^ other.keys):
            lacking = other if key in first else first
            raise MissingEntryError(
                f"{lacking.source}: no entry for {_name(key)}, which the other table has; "
                "profile the same candidates on every device"
            )


def _name(key: SegmentKey) -> str:
    return f"segment ({key[0]},{key[1]})" + (f" merged into {key[2]}" if len(key) > 2 else "")
