"""The importance table: what replacing a segment does to the score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from layerfold.arguments import shown
from layerfold.errors import MissingEntryError, TableError, UsageError
from layerfold.tables._changes import change_cells, levers_of, set_change, with_changes
from layerfold.tables._csv import LARGEST, Row, read_rows, write_rows
from layerfold.tables.fields import LARGEST_POSITION, entries_of, make_plain
from layerfold.tables.kernel import is_kernel_text
from layerfold.tables.levers import DROP, Change, Lever, lever_of
from layerfold.tables.provenance import Provenance

_MEASURED = ("train_loss", "train_acc", "val_loss", "val_acc")
_KNOWN = ("", "id", "st", "end", "st_act", "end_act", *_MEASURED, "importance", "imp", "breaks")
Key = tuple[int, int, int, int] | tuple[int, int, int, int, str]
"""(start, end, start_act, end_act), and the merged kernel where a lever changes some of the layers."""


@dataclass(frozen=True, kw_only=True)
class ImportanceEntry:
    """The importance of one segment between two activation states.

    Attributes:
        start, end: positions, 0 <= start < end.
        start_act, end_act: 1 if the slot at that position holds an activation, else 0. Positions that are
            activated in the original appear with 1 only; originally empty slots may appear with both; a chain's
            start has 1, a chain's end its original state.
        importance: the change of the score in points when the segment replaces its layers, higher is better. In a
            file it is the column ``importance`` if there is one, else ``imp`` (extended tables), else ``val_acc``,
            the difference of the validation accuracy to the unmodified network.
        train_loss, train_acc, val_loss, val_acc: differences to the unmodified network; None if not measured.
        extra: further columns of the estimator, name to number or text.
        breaks: in an extended table, the inner positions without activation, with start and end around them.
        merged: the merged kernel (``layerfold.tables.kernel``); empty if unknown. Must be known where layers are
            changed: it leads to the latency.
        kept: the layers that stay; None for every one.
        change: what a lever changes; None for nothing. Follows from ``kept`` where that is given.

    Example:
        >>> entry = lf.ImportanceEntry(start=1, end=3, start_act=1, end_act=1, importance=-0.8)
        >>> entry.key
        (1, 3, 1, 1)
    """

    start: int
    end: int
    start_act: int
    end_act: int
    importance: float
    train_loss: float | None = None
    train_acc: float | None = None
    val_loss: float | None = None
    val_acc: float | None = None
    extra: Mapping[str, float | str] = field(default_factory=dict)
    breaks: tuple[int, ...] | None = None
    merged: str = ""
    kept: tuple[int, ...] | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        make_plain(
            self,
            wholes=("start", "end", "start_act", "end_act"),
            texts=("merged",),
            lists=("breaks", "kept"),
            numbers=("importance", *_MEASURED),
            optional=_MEASURED,
        )
        if not isinstance(self.extra, Mapping):
            raise UsageError(f"extra={shown(self.extra)}: expected a mapping from column to number or text")
        set_change(self)
        if self.change is not None and not is_kernel_text(self.merged):
            raise TableError(
                f"importance entry ({self.start},{self.end}): merged={self.merged!r}, expected the kernel that the "
                f"segment {lever_of(self.change.word).phrase(self.change)} merges into, such as '3x3' or 'identity'"
            )
        if not 0 <= self.start < self.end <= LARGEST_POSITION:
            raise TableError(
                f"importance entry st={shown(self.start)}, end={shown(self.end)}: expected 0 <= st < end <= 1000000"
            )
        if self.start_act not in (0, 1) or self.end_act not in (0, 1):
            raise TableError(
                f"importance entry ({self.start},{self.end}): activation states "
                f"({shown(self.start_act)},{shown(self.end_act)}), expected 0 or 1"
            )
        if not abs(self.importance) <= LARGEST:
            raise TableError(
                f"importance entry ({self.start},{self.end}): importance={self.importance!r}, "
                "expected points between -1e9 and 1e9"
            )

    @property
    def key(self) -> Key:
        states = self.start, self.end, self.start_act, self.end_act
        return states if self.change is None else (*states, self.merged)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers that do not stay, rising."""
        return self.change.layers or () if self.change is not None and self.change.lever == DROP else ()


class ImportanceTable:
    """Importances by (start, end, start_act, end_act), each once, and how they were estimated.

    Args:
        entries: at least one.
        provenance: what the sidecar says; ``left_out`` names segments that are absent on purpose.
        source: name of the file, for error lines.

    Attributes:
        by_key: (start, end, start_act, end_act) to entry, in the order of the entries.

    Example:
        >>> importance
        ImportanceTable(6 entries, source='importance table')
        >>> importance.entry(1, 3).importance
        -1.0
        >>> importance.write("importance.csv")
        >>> lf.ImportanceTable.read("importance.csv").entry(0, 3).importance
        -4.0
    """

    def __init__(
        self,
        entries: Iterable[ImportanceEntry],
        *,
        provenance: Provenance | None = None,
        source: str = "importance table",
    ) -> None:
        self.entries: tuple[ImportanceEntry, ...] = entries_of(entries, ImportanceEntry)
        self.provenance = provenance or Provenance(kind="importance")
        self.source = source
        if not self.entries:
            raise TableError(f"{source}: no entries; expected one for each segment")
        self.by_key: dict[Key, ImportanceEntry] = {}
        for entry in self.entries:
            if self.by_key.setdefault(entry.key, entry) is not entry:
                raise TableError(f"{source}: (st,end,st_act,end_act)={entry.key} given twice, expected once")

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"ImportanceTable({len(self.entries)} entries, source={self.source!r})"

    def __contains__(self, key: object) -> bool:
        return key in self.by_key

    @cached_property
    def segments(self) -> frozenset[tuple[int, int]]:
        """Every (start, end) with at least one entry in which no layer is changed."""
        return frozenset((entry.start, entry.end) for entry in self.entries if entry.change is None)

    @cached_property
    def empty_slots(self) -> frozenset[int]:
        """Positions that some entry says may be without activation where merging stops.

        By the rule for entries these are the slots that are empty in the original, and a chain's end without one.
        """
        return frozenset(entry.start for entry in self.entries if entry.start_act == 0).union(
            entry.end for entry in self.entries if entry.end_act == 0
        )

    @cached_property
    def hash(self) -> str:
        """Hash of the numbers, whatever the order of the rows."""
        rows = sorted((*entry.key[:4], entry.importance, *entry.key[4:]) for entry in self.entries)
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]

    def entry(self, start: int, end: int, start_act: int = 1, end_act: int = 1) -> ImportanceEntry:
        """Return one entry, or raise MissingEntryError."""
        found = self.by_key.get((start, end, start_act, end_act))
        if found is None:
            raise MissingEntryError(
                f"{self.source}: no entry for st={start}, end={end}, st_act={start_act}, end_act={end_act}; "
                "estimate it with `layerfold importance`"
            )
        return found

    @classmethod
    def read(cls, path: str | Path) -> ImportanceTable:
        """Read an importance table, ours, a published one, or an extended one.

        LayerMerge's tables have no activation states: there every position where merging stops has an activation.

        Raises:
            TableError: one line with file, row, column, what is wrong, what was expected.
        """
        header, rows, provenance = read_rows(Path(path), ("st", "end"))
        if "ker" in header and "conv_comb" not in header:
            raise TableError(f"{path}: row 1: no column 'conv_comb', expected one beside ker, str and is_dw")
        has_states = "conv_comb" not in header or "st_act" in header
        for name in ("st_act", "end_act") if has_states else ():
            if name not in header:
                raise TableError(f"{path}: row 1: no column {name!r}, expected the columns st,end,st_act,end_act")
        column = next((name for name in ("importance", "imp", "val_acc") if name in header), None)
        if column is None:
            raise TableError(f"{path}: row 1: no column 'val_acc', 'importance' or 'imp', expected one of them")
        found = list(with_changes(rows, must_say=True))
        of_levers = {column for lever in (lever_of(DROP), Lever) for column in lever.columns}
        of_levers.update(column for lever in levers_of(change for *_, change in found) for column in lever.columns)
        extra_names = [name for name in header if name not in _KNOWN and name not in of_levers]
        entries = []
        seen: dict[Key, int] = {}
        for row, merged, change in found:
            start, end = row.position("st"), row.position("end")
            importance = row.number_in(column, -LARGEST, "points between -1e9 and 1e9")
            measured: dict[str, Any] = {name: row.optional_number(name) for name in _MEASURED}
            entry = ImportanceEntry(
                start=start,
                end=end,
                start_act=row.state("st_act") if has_states else 1,
                end_act=row.state("end_act") if has_states else 1,
                merged=merged,
                change=change,
                importance=importance,
                extra={name: _number_or_text(row, name) for name in extra_names},
                breaks=row.breaks("breaks", start, end),
                **measured,
            )
            if entry.key in seen:
                other = f"{entry.key} stands in row {seen[entry.key]} too"
                kernel = "" if entry.change is None else " and kernel"
                raise row.error("st", f"each (st,end,st_act,end_act){kernel} once; {other}")
            seen[entry.key] = row.number
            entries.append(entry)
        return cls(entries, provenance=provenance, source=str(path))

    def write(self, path: str | Path) -> None:
        """Write the CSV and its sidecar; extended tables get ``imp`` and ``breaks``."""
        keys = ("id", "st", "end", "st_act", "end_act")
        levers = levers_of(entry.change for entry in self.entries)
        columns = tuple(dict.fromkeys(column for lever in levers for column in lever.columns))
        rows: list[list[object]]
        if all(entry.breaks is not None for entry in self.entries):
            header: tuple[str, ...] = (*keys, "imp", "breaks")
            rows = [[index, *entry.key[:4], entry.importance, entry.breaks] for index, entry in enumerate(self.entries)]
        else:
            extra_names = list(dict.fromkeys(name for entry in self.entries for name in entry.extra))
            own = ("importance",) if any(entry.importance != entry.val_acc for entry in self.entries) else ()
            # As LayerMerge's program reads it: it needs a column importance.
            own = ("importance",) if levers else own
            header = (*keys, *columns, *_MEASURED, *own, *extra_names)
            rows = []
            for index, entry in enumerate(self.entries):
                cells: list[object] = [index, *entry.key[:4]]
                found = change_cells(entry, levers)
                cells += [found[name] for name in columns]
                cells += [getattr(entry, name) for name in _MEASURED]
                cells += [entry.importance] if own else []
                rows.append(cells + [entry.extra.get(name) for name in extra_names])
        write_rows(Path(path), header, rows, replace(self.provenance, kind=self.provenance.kind or "importance"))


def _number_or_text(row: Row, name: str) -> float | str:
    try:
        return float(row.cells[name])
    except ValueError:
        return row.text(name)
