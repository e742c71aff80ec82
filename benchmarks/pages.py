"""Tables of the documentation that are written from records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, one line a row; the first column to the left, the others to the right."""
    lines = (" ".join(f"| {cell}" if cell else "|" for cell in row) + " |" for row in rows)
    return [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1), *lines]


def fill_in(page: Path, marker: str, table: Sequence[str]) -> None:
    """Replace the table behind the page's line ``<!-- marker -->``."""
    before, comment, after = page.read_text().partition(f"<!-- {marker} -->\n")
    if not comment:
        sys.exit(f"error: {page.name} has no line <!-- {marker} -->")
    lines = after.lstrip("\n").split("\n")
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    page.write_text(before + comment + "\n".join(["", *table, "", *lines[lines[0] == "" :]]))
