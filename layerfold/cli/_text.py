"""Tables of plain text, and warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from layerfold.terminal import printable

BATCH_NORM_TEXTS = {
    "original": "statistics are the original's",
    "recalibrated": "statistics are measured again on --data",
    "finetuned": "statistics are finetuned",
}
"""Where a network's BatchNorm statistics come from, for people; nothing for one that has none."""


def columns(header: Sequence[str], rows: Sequence[Sequence[object]], *, right: str = "", indent: str = "") -> str:
    """Return lines of aligned columns under a header.

    Args:
        header: a name a column.
        rows: cells, written with ``str``; None as nothing.
        right: names of the columns to align right, separated by spaces.
        indent: put before each line.
    """
    cells = [[_cell(each) for each in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    to_the_right = {i for i, name in enumerate(header) if name in right.split()}
    lines = []
    for row in cells:
        parts = [
            cell.rjust(w) if i in to_the_right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(parts)).rstrip())
    return "\n".join(lines)


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Return one line a (name, value), values aligned; a value of None leaves its line out."""
    shown = [(name, _cell(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)


def _cell(value: object) -> str:
    """Return a cell's text; a line break of a file name would spoil the table."""
    return "" if value is None else printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def plural(number: int, noun: str) -> str:
    """Return ``1 layer``, ``2 layers``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def warn_of_conditions(warnings: Iterable[str]) -> None:
    """Say on stderr what the machine did meanwhile that a reader of the numbers should know."""
    for warning in warnings:
        print(f"layerfold: warning: {warning}", file=sys.stderr)
