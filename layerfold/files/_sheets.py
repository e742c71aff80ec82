"""CSV that a person may open in a spreadsheet, where a cell like ``=1+1`` is a formula and runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from layerfold.terminal import printable

FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV: floats to the last digit, None as nothing, tuples with commas, texts never as formulas.

    A text that a spreadsheet would run gets an apostrophe in front, by which spreadsheets know a text.

    Example:
        >>> csv_text(("name", "ms"), [("=1+1", 0.5), ("-2", None)])
        "name,ms\\n'=1+1,0.5\\n-2,\\n"
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([_cell(name) for name in header])
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return repr(float(value))
    text = printable(str(value))  # of the line breaks, csv leaves a carriage return without quotes
    return f"'{text}" if text.startswith(FORMULA_SIGNS) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
