"""The report as one HTML file that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from layerfold.files import write_text
from layerfold.report import words
from layerfold.report.data import MergedSegment, ReportData, ResultRow
from layerfold.report.page_style import STYLE
from layerfold.report.words import markup_text


def write_report(run: ReportData, path: str | Path) -> Path:
    """Write the report page.

    Args:
        run: all that it shows; the frontier's picture is read from ``run.frontier_path`` and put inside.
        path: the file to write, for example ``out/report.html``.

    Returns:
        ``path``.
    """
    write_text(path, report_html(run))
    return Path(path)


def report_html(run: ReportData) -> str:
    """Return the page as a text; see :func:`write_report`."""
    body = "\n".join(
        [
            _head(run),
            *_section("Result", _result_table(run.rows)),
            *_picture(run),
            *_frontier(run),
            *_pictures(run),
            *_section("Predicted and measured", _rounds(run)),
            *_section("What each merged conv saved", _segments(run)),
            *_section("Time taken", _steps(run)),
            *_section("Files in this folder", _pairs(run.files)),
            *_section("How this was made", _pairs(run.provenance)),
            *_section("Remarks", "".join(f"<p>{markup_text(note)}</p>" for note in run.notes)),
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{markup_text(run.title)}</title>\n{STYLE}\n</head>\n<body>\n<main>\n{body}\n"
        "<footer>Written by layerfold. Every number above was computed or measured in this run.</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _head(run: ReportData) -> str:
    facts = " · ".join(f"<b>{markup_text(text)}</b>" for text in (run.model, run.data, run.device) if text)
    command = f'<p class="facts"><code>{markup_text(run.command)}</code></p>' if run.command else ""
    state = {True: " met", False: " missed", None: ""}[run.is_budget_met]
    tiles = "".join(
        f'<div class="tile"><b>{markup_text(big)}</b><span>{_keep_units(markup_text(small))}</span></div>'
        for big, small in _tiles(run)
    )
    return (
        f'<header><h1>{markup_text(run.title)}</h1><p class="facts">{facts}</p>{command}</header>\n'
        f'<div class="verdict{state}">{markup_text(run.verdict)}</div>\n<div class="tiles">{tiles}</div>'
    )


def _tiles(run: ReportData) -> Iterator[tuple[str, str]]:
    """Yield the numbers a reader looks for first, each with its meaning."""
    if len(run.rows) < 2:
        return
    before, after = run.rows[0], run.rows[-1]
    if before.latency_ms is not None and after.latency_ms is not None:
        change = f"{words.ms_text(before.latency_ms)} → {words.ms_text(after.latency_ms)}"
        yield words.speedup_text(before.latency_ms, after.latency_ms), f"faster, measured: {change}"
    for other in run.rows[1:-1]:  # the original quantised, in a run in int8
        if other.latency_ms is not None and after.latency_ms is not None:
            change = f"{words.ms_text(other.latency_ms)} → {words.ms_text(after.latency_ms)}"
            yield words.speedup_text(other.latency_ms, after.latency_ms), f"faster than {other.name}: {change}"
    if before.accuracy_pct is not None and after.accuracy_pct is not None:
        change = f"{words.percent_text(before.accuracy_pct)} → {words.percent_text(after.accuracy_pct)}"
        yield words.points_text(after.accuracy_pct - before.accuracy_pct), f"points of accuracy: {change}"
    elif after.agreement_pct is not None:
        yield words.percent_text(after.agreement_pct), "of answers agree with the original"
    yield f"{before.num_layers} → {after.num_layers}", "layers"
    params, macs = (words.count_text(before.num_params), words.count_text(before.macs))
    change = f"parameters, from {params}; multiply-adds {macs} → {words.count_text(after.macs)}"
    yield words.count_text(after.num_params), change


def _keep_units(text: str) -> str:
    """Return the text with numbers and units kept on one line."""
    return re.sub(r"(?<=\d) (?=(?:ms|%|k|M|G)\b|%)", "\u00a0", text)


def _section(heading: str, body: str) -> Iterator[str]:
    """Yield a section, or nothing for an empty body."""
    if body:
        yield f"<section><h2>{markup_text(heading)}</h2>{body}</section>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, last: str = "") -> str:
    """Return a table.

    Args:
        columns: headings; one that begins with ``<`` stands left.
        rows: cells that are HTML already, each a text or a whole ``<td>``.
        last: class of the last row.
    """
    listed = list(rows)
    head = "".join(
        f'<th class="left">{markup_text(column[1:])}</th>'
        if column.startswith("<")
        else f"<th>{markup_text(column)}</th>"
        for column in columns
    )
    body = "".join(
        f"<tr{f' class={last!r}' if last and i == len(listed) - 1 else ''}>"
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for i, cells in enumerate(listed)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _result_table(rows: Sequence[ResultRow]) -> str:
    if not rows:
        return ""
    has_agreement = any(row.agreement_pct is not None for row in rows)
    columns = [
        "network",
        "accuracy",
        *(["agreement"] if has_agreement else []),
        "latency",
        "95 % interval",
        "speed-up",
        "predicted",
        "layers",
        "parameters",
        "multiply-adds",
    ]
    note = "Latency: median of one forward pass of the whole network, the networks measured in turns."
    lines = [_result_cells(row, rows[0], has_agreement) for row in rows]
    return _table(columns, lines, last="main") + f'<p class="note">{note}</p>'


def _result_cells(row: ResultRow, first: ResultRow, has_agreement: bool) -> list[str]:
    """Return the cells of one network; changes are against ``first``."""
    accuracy = words.percent_text(row.accuracy_pct)
    if row is not first and row.accuracy_pct is not None and first.accuracy_pct is not None:
        accuracy += f" ({words.points_text(row.accuracy_pct - first.accuracy_pct)})"
    speedup = words.NOTHING
    if first.latency_ms is not None and row.latency_ms is not None:
        speedup = words.speedup_text(first.latency_ms, row.latency_ms)
    return [
        markup_text(row.name),
        accuracy,
        *([words.percent_text(row.agreement_pct)] if has_agreement else []),
        words.ms_text(row.latency_ms),
        words.interval_text(row.low_ms, row.high_ms) or words.NOTHING,
        speedup,
        words.ms_text(row.predicted_ms),
        str(row.num_layers),
        words.count_text(row.num_params),
        words.count_text(row.macs),
    ]


def _picture(run: ReportData) -> Iterator[str]:
    if run.network_svg:
        yield f'<section class="picture"><div class="scroll"><figure>{run.network_svg}</figure></div></section>'


def _frontier(run: ReportData) -> Iterator[str]:
    if run.frontier_path is not None:
        note = "Every point is a plan that no other beats in both latency and importance, found exactly."
        yield from _section("The frontier", _image(run.frontier_path, "Latency against importance", note))


def _pictures(run: ReportData) -> Iterator[str]:
    for heading, path, note in run.pictures:
        yield from _section(heading, _image(path, heading, note))


def _image(path: Path, name: str, note: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    figure = f'<figure><img alt="{markup_text(name)}" src="data:image/png;base64,{data}"></figure>'
    return f'{figure}<p class="note">{markup_text(note)}</p>'


def _rounds(run: ReportData) -> str:
    if not run.rounds:
        return ""
    cells = (
        [
            str(found.number),
            words.ms_text(found.predicted_ms),
            words.ms_text(found.measured_ms),
            words.interval_text(found.low_ms, found.high_ms),
            f"{words.signed_percent_text(100 * (found.measured_ms / found.predicted_ms - 1))}",
            f'<td class="left {"good" if found.is_within else "bad"}">{"✓" if found.is_within else "✗"} '
            f"{markup_text(found.verdict)}</td>",
        ]
        for found in run.rounds
    )
    budget = "" if run.budget_ms is None else f" Budget: {words.ms_text(run.budget_ms)}."
    note = (
        f"A plan is taken when the upper end of its measured interval is within the budget.{budget} Each round is "
        "shown in proportion to the original that was measured beside it."
    )
    columns = ("round", "predicted", "measured", "95 % interval", "measured against predicted", "<verdict")
    return _table(columns, cells) + f'<p class="note">{note}</p>'


def _segments(run: ReportData) -> str:
    if not run.segments:
        return ""
    rows = [
        [
            f"{s.start + 1}" if s.end == s.start + 1 else f"{s.start + 1}–{s.end}",
            f'<td class="left wide">{markup_text(_replaced_text(s))}</td>',
            f'<td class="left">{markup_text(s.conv)}</td>',
            *_saved_cells(s.before_ms, s.after_ms),
            words.count_text(s.before_macs),
            words.count_text(s.after_macs),
        ]
        for s in run.segments
    ]
    known = [(s.before_ms, s.after_ms) for s in run.segments if s.before_ms is not None and s.after_ms is not None]
    is_known = len(known) == len(run.segments)
    total_ms = (sum(before for before, _ in known), sum(after for _, after in known)) if is_known else (None, None)
    macs = (sum(s.before_macs for s in run.segments), sum(s.after_macs for s in run.segments))
    rows.append(["all", "<td></td>", "<td></td>", *_saved_cells(*total_ms), *map(words.count_text, macs)])
    columns = (
        "layers",
        "<replaced",
        "<merged conv",
        "before (ms)",
        "after (ms)",
        "saved (ms)",
        "multiply-adds before",
        "after",
    )
    note = "Latencies are the latency table's, in proportion to the original as measured last."
    return _table(columns, rows, last="total") + f'<p class="note">{note}</p>'


def _saved_cells(before_ms: float | None, after_ms: float | None) -> list[str]:
    """Return before, after and saved with three decimals, so that the columns line up."""
    if before_ms is None or after_ms is None:
        return [words.NOTHING] * 3
    return [f"{value:.3f}".replace("-", "−") for value in (before_ms, after_ms, before_ms - after_ms)]


def _replaced_text(segment: MergedSegment) -> str:
    dropped = f"; dropped: {_names_text(segment.dropped)}" if segment.dropped else ""
    return _names_text(segment.layers) + dropped


def _names_text(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]} ({len(names)} layers)"


def _steps(run: ReportData) -> str:
    if not run.steps:
        return ""
    most = max(max(step.seconds for step in run.steps), 1e-9)
    rows = [
        [
            markup_text(step.name) + (" <span class='note'>(done by an earlier run)</span>" if step.is_resumed else ""),
            words.duration_text(step.seconds),
            f'<td class="barcell"><span class="bar{" earlier" if step.is_resumed else ""}" '
            f'style="width:{100 * step.seconds / most:.1f}%"></span></td>',
        ]
        for step in run.steps
    ]
    rows.append(["all", words.duration_text(sum(step.seconds for step in run.steps)), "<td></td>"])
    return _table(("step", "wall time", ""), rows, last="total")


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    rows = "".join(
        f'<tr><td><code>{markup_text(name)}</code></td><td class="left wide">{markup_text(value)}</td></tr>'
        for name, value in pairs
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
