"""The result table for a terminal or a log."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from layerfold.report import words
from layerfold.report.data import ResultRow


def result_table_text(rows: Sequence[ResultRow], *, is_coloured: bool = False) -> str:
    """Return the result table as text of 80 columns: a column per network, and the change from the first to the last.

    Args:
        rows: the networks, the original first.
        is_coloured: True for a terminal, False for a log or a file.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right")
    if len(rows) > 1:
        table.add_column("change", justify="right")
    for cells in _lines(rows):
        table.add_row(*cells)
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=is_coloured, no_color=not is_coloured).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _lines(rows: Sequence[ResultRow]) -> Iterator[list[str]]:
    """Yield each line's cells; a line that no network fills is left out."""
    if not rows:
        return
    first, last = rows[0], rows[-1]
    lines = [
        (
            "accuracy",
            [words.percent_text(r.accuracy_pct) for r in rows],
            _points(first.accuracy_pct, last.accuracy_pct),
        ),
        ("agreement with the original", [words.percent_text(r.agreement_pct) for r in rows], ""),
        ("latency, median", [words.ms_text(r.latency_ms) for r in rows], _faster(first, last)),
        ("  95 % interval", [words.interval_text(r.low_ms, r.high_ms) or words.NOTHING for r in rows], ""),
        ("  predicted", [words.ms_text(r.predicted_ms) for r in rows], ""),
        ("layers", [str(r.num_layers) for r in rows], f"{last.num_layers - first.num_layers:+d}".replace("-", "−")),
        ("parameters", [words.count_text(r.num_params) for r in rows], _percent(first.num_params, last.num_params)),
        ("multiply-adds", [words.count_text(r.macs) for r in rows], _percent(first.macs, last.macs)),
    ]
    for name, cells, change in lines:
        if any(cell != words.NOTHING for cell in cells):
            yield [name, *cells, *([change] if len(rows) > 1 else [])]


def _points(before_pct: float | None, after_pct: float | None) -> str:
    return "" if before_pct is None or after_pct is None else f"{words.points_text(after_pct - before_pct)} points"


def _faster(before: ResultRow, after: ResultRow) -> str:
    if before.latency_ms is None or after.latency_ms is None:
        return ""
    return f"{words.speedup_text(before.latency_ms, after.latency_ms)} as fast"


def _percent(before: float, after: float) -> str:
    return words.signed_percent_text(100 * (after / before - 1)) if before else ""
