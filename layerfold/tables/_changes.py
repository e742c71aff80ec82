"""The columns of tables that levers read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from layerfold.errors import TableError
from layerfold.tables._csv import Row
from layerfold.tables.kernel import is_kernel_text, kernel_of_columns
from layerfold.tables.levers import DROP, Change, Lever, lever_of

if TYPE_CHECKING:
    from layerfold.tables import ImportanceEntry, LatencyEntry


def with_changes(rows: Sequence[Row], *, must_say: bool) -> Iterator[tuple[Row, str, Change | None]]:
    """Yield (row, merged kernel, what is changed) of each row, st and end checked.

    The kernel is empty where the table has none.

    Args:
        rows: of one table.
        must_say: whether the layers that are changed have to be there, if merged kernels are.

    Raises:
        TableError: a cell that is not what its column holds.
    """
    kernels, levers = [], {DROP: lever_of(DROP)}
    for row in rows:
        start, end = row.position("st"), row.position("end")
        if start >= end:
            raise row.error("end", f"a position after st={start}")
        kernels.append(_merged(row))
        word = row.cells.get("variant", "")
        if word:
            lever = lever_of(word, f"{row.source}: row {row.number}, column variant", TableError)
            if "variant" not in lever.columns:
                raise row.error("variant", f"a lever that stands in this column, which {lever.name} does not")
            levers[lever.name] = lever
    by_lever = [each.changes_in(rows, kernels, must_say=must_say) for each in levers.values()]
    for row, kernel, *changes in zip(rows, kernels, *by_lever, strict=True):
        yield row, kernel, next((change for change in changes if change is not None), None)


def levers_of(changes: Iterable[Change | None]) -> list[Lever]:
    """Return the levers that made these changes, drop first."""
    names = {change.lever for change in changes if change is not None}
    return [lever_of(name) for name in sorted(names, key=lambda name: (name != DROP, name))]


def change_cells(entry: LatencyEntry | ImportanceEntry, levers: Sequence[Lever]) -> dict[str, object]:
    """Return the cells of one row; those of a lever that did not change it may be left empty."""
    cells: dict[str, object] = dict.fromkeys((column for lever in levers for column in lever.columns), "")
    for lever in levers:
        cells.update(lever.cells(entry))
    return cells


def _merged(row: Row) -> str:
    text = row.text("merged")
    if text:
        if not is_kernel_text(text):
            raise row.error("merged", "a merged kernel such as 3x3, '5x5 dw' or identity")
        return text
    cells = [row.cells.get(name, "") for name in ("ker", "str", "is_dw")]
    if not any(cells):
        return ""
    kernel = kernel_of_columns(*cells)
    if kernel is None:
        others = f"str={cells[1]!r}, is_dw={cells[2]!r}"
        raise row.error("ker", f"a kernel's side, with a stride and True or False beside it ({others})")
    return kernel


def set_change(entry: Any, *, drops: bool = False) -> None:
    """Make the fields ``kept``, ``drops`` (if it has one) and ``change`` of an entry say the same, in place.

    Args:
        entry: what is given of ``kept`` counts first, then ``change``.
        drops: whether layers are dropped, which ones being unknown.
    """
    layers, kept, change = range(entry.start + 1, entry.end + 1), entry.kept, entry.change
    if kept is not None:
        change = Change(DROP, tuple(index for index in layers if index not in kept))
    elif change is None and drops:
        change = Change(DROP, None)
    elif change is not None and change.lever == DROP and change.layers is not None:
        kept = tuple(index for index in layers if index not in change.layers)
    for name, value in (("kept", kept), ("change", change), ("drops", change is not None and change.lever == DROP)):
        if hasattr(entry, name):
            object.__setattr__(entry, name, value)
