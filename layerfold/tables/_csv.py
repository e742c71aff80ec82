"""Reading and writing the CSV files: strict on the way in, atomic on the way out."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfold.errors import TableError
from layerfold.files import FORMULA_SIGNS, csv_text, json_text, read_text, replacing_all, sidecar_path
from layerfold.tables.fields import LARGEST_POSITION
from layerfold.tables.provenance import Provenance, read_sidecar
from layerfold.terminal import one_line

LARGEST = 1e9
"""No latency in ms and no importance in points is as large; beyond it sums lose their digits."""
_MOST_COLUMNS = 1000
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What a spreadsheet writes where commas stand in numbers."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a CSV file, with what an error line needs: the file, the row's number (header = 1)."""

    source: str
    number: int
    cells: Mapping[str, str]

    def error(self, column: str, expected: str) -> TableError:
        value = self.cells.get(column, "")
        shown = value if len(value) <= 40 else value[:37] + "..."
        return TableError(f"{self.source}: row {self.number}, column {column}: {shown!r}, expected {expected}")

    def position(self, column: str) -> int:
        text = self.cells[column]
        if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= LARGEST_POSITION):
            raise self.error(column, "a position: a whole number from 0 to 1000000")
        return int(text)

    def count(self, column: str) -> int | None:
        text = self.cells.get(column, "")
        if text == "":
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise self.error(column, "a whole number of at least 0")
        return int(text)

    def state(self, column: str) -> int:
        if self.cells[column] not in ("0", "1"):
            raise self.error(column, "0 or 1 (activation there or not)")
        return int(self.cells[column])

    def optional_state(self, column: str) -> int | None:
        return None if self.cells.get(column, "") == "" else self.state(column)

    def number_in(self, column: str, least: float, expected: str, *, open_end: bool = False) -> float:
        """Return a finite number from ``least`` (itself left out if ``open_end``) to LARGEST."""
        text = self.cells[column]
        try:
            value = float(text) if text.isascii() and "_" not in text and text == text.strip() else math.nan
        except ValueError:
            value = math.nan
        if not (least <= value <= LARGEST) or (open_end and value == least):
            raise self.error(column, expected)
        return value + 0.0  # -0.0 becomes 0.0

    def optional_number(self, column: str) -> float | None:
        expected = "a number between -1e9 and 1e9, or nothing"
        return None if self.cells.get(column, "") == "" else self.number_in(column, -LARGEST, expected)

    def text(self, column: str) -> str:
        """Return text that is safe to open in a spreadsheet: no quote, no line break, no formula."""
        value = self.cells.get(column, "")
        if any(mark in value for mark in '"\n\r\x00') or value.startswith(FORMULA_SIGNS):
            raise self.error(column, "plain text without quotes, line breaks or a formula")
        return value

    def breaks(self, column: str, start: int, end: int) -> tuple[int, ...] | None:
        value = self.cells.get(column, "")
        if value == "":
            return None
        parts = value.split(",")
        if all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
            found = tuple(map(int, parts))
            if found[0] == start and found[-1] == end and all(a < b for a, b in itertools.pairwise(found)):
                return found
        raise self.error(column, f"rising positions from {start} to {end}, such as {start},{end}")


def read_rows(path: Path, required: Sequence[str]) -> tuple[list[str], list[Row], Provenance]:
    """Return (column names, rows, provenance) of a table file.

    Raises:
        TableError: missing or unreadable file, missing or repeated column, a row with too few or too many fields,
            a file that ends in the middle of a row or has fewer rows than its sidecar promises.
    """
    source = str(path)
    text = read_text(path, remedy="expected a CSV table", error=TableError)
    if not text.strip():
        raise TableError(f"{source}: empty; expected the columns {','.join(required)}")
    if "\x00" in text:
        raise TableError(f"{source}: holds a zero byte; expected a CSV file")
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[Row] = []
    header: list[str] = []
    try:
        for cells in reader:
            if not header:
                if len(cells) > _MOST_COLUMNS:
                    raise TableError(f"{source}: row 1: {len(cells)} columns, expected at most {_MOST_COLUMNS}")
                header = [name.strip() for name in cells]
                _check_header(source, header, required)
            elif cells:
                number = reader.line_num
                if len(cells) != len(header):
                    hint = "; truncated?" if len(cells) < len(header) else ""
                    raise TableError(
                        f"{source}: row {number}, column {one_line(header[min(len(cells), len(header) - 1)])}: "
                        f"{len(cells)} fields, expected {len(header)} ({one_line(','.join(header), most=200)}){hint}"
                    )
                rows.append(Row(source=source, number=number, cells=dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise TableError(f"{source}: row {reader.line_num}: {error}; expected comma-separated fields") from None
    if not rows:
        raise TableError(f"{source}: no rows after the header; expected one row per segment")
    if not text.endswith(("\n", "\r")):
        raise TableError(
            f"{source}: row {rows[-1].number}: the file ends without a line break, expected one (truncated? "
            "if it is whole, add a line break at its end)"
        )
    provenance, promised = read_sidecar(path)
    if promised is not None and promised != len(rows):
        raise TableError(
            f"{source}: {len(rows)} rows, expected the {promised} that {sidecar_path(path).name} promises "
            "(truncated? if the change is meant, correct `rows` there)"
        )
    return header, rows, provenance


def _check_header(source: str, header: list[str], required: Sequence[str]) -> None:
    for mark, what in _OTHER_SEPARATORS.items():
        if len(header) == 1 and set(required) <= {name.strip(' "') for name in header[0].split(mark)}:
            raise TableError(
                f"{source}: row 1: {what} between the columns, expected commas; save it again with "
                "commas between columns and points in numbers"
            )
    for name in required:
        if name not in header:
            raise TableError(f"{source}: row 1: no column {name!r}, expected the columns {','.join(required)}")
    for name in header:
        if header.count(name) > 1:
            raise TableError(f"{source}: row 1, column {one_line(name)}: named twice, expected each column once")


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], provenance: Provenance) -> None:
    """Write the CSV and its sidecar, each by an atomic replace: a killed process leaves the old file or the new."""
    # The sidecar goes first: a table beside a newer sidecar is refused by its row count rather than misread.
    with replacing_all(sidecar_path(path), path) as (partial_sidecar, partial):
        partial_sidecar.write_text(json_text({**provenance.to_json(), "rows": len(rows)}), encoding="utf-8")
        partial.write_text(csv_text(header, rows), encoding="utf-8", newline="")
