"""The report page and the terminal table show the run's numbers, and the page needs nothing else."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from layerfold.report import (
    MergedSegment,
    ReportData,
    ResultRow,
    StepTime,
    VerifyRound,
    result_table_text,
    words,
    write_report,
)

ORIGINAL = ResultRow(
    name="original",
    accuracy_pct=97.9,
    latency_ms=6.31,
    low_ms=6.25,
    high_ms=6.4,
    predicted_ms=6.28,
    num_layers=52,
    num_params=2_230_000,
    macs=300_774_272,
)
COMPRESSED = ResultRow(
    name="compressed",
    accuracy_pct=97.2,
    latency_ms=4.74,
    low_ms=4.70,
    high_ms=4.79,
    predicted_ms=4.71,
    num_layers=31,
    num_params=2_130_000,
    macs=310_774_272,
)


def _run(frontier_path: Path | None = None) -> ReportData:
    return ReportData(
        title="Sample <net> & co",
        model="timm:sample",
        data="mnist5k",
        device="this CPU",
        budget_ms=4.85,
        is_budget_met=True,
        verdict="Budget met.",
        rows=(ORIGINAL, COMPRESSED),
        rounds=(
            VerifyRound(
                number=1,
                predicted_ms=4.8,
                measured_ms=4.95,
                low_ms=4.9,
                high_ms=5.01,
                is_within=False,
                verdict="over the budget",
            ),
            VerifyRound(
                number=2, predicted_ms=4.71, measured_ms=4.74, low_ms=4.7, high_ms=4.79, is_within=True, verdict="taken"
            ),
        ),
        segments=(
            MergedSegment(
                start=2,
                end=5,
                layers=("a", "b", "c"),
                conv="5×5, 8→8",
                before_ms=0.5,
                after_ms=0.2,
                before_macs=1000,
                after_macs=2000,
            ),
            MergedSegment(
                start=5,
                end=7,
                layers=("d", "e"),
                dropped=("e",),
                conv="3×3, 8→8",
                before_ms=0.1,
                after_ms=0.15,
                before_macs=1000,
                after_macs=2000,
            ),
        ),
        steps=(StepTime(name="trace", seconds=0.3), StepTime(name="profile", seconds=65, is_resumed=True)),
        network_svg="<svg id='picture'></svg>",
        frontier_path=frontier_path,
        files=(("merged.onnx", "the compressed network"),),
        provenance=(("torch", "2.x"),),
        notes=("A remark.",),
    )


class _Balance(HTMLParser):
    """Checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_every_part(tmp_path: Path) -> None:
    page = write_report(_run(), tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (
        "Sample &lt;net&gt; &amp; co",
        "Budget met.",
        "1.33×",
        "97.2 % (−0.7)",
        "4.70–4.79",
        "52 → 31",
        "over the budget",
        "3–5",
        "0.300",
        "merged.onnx",
        "A remark.",
        "id='picture'",
    ):
        assert text in page, text


def test_page_is_well_formed(tmp_path: Path) -> None:
    parser = _Balance()
    parser.feed(write_report(_run(), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert parser.open == []


def test_page_sums_what_segments_saved(tmp_path: Path) -> None:
    page = write_report(_run(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "−0.050" in page  # a segment that is slower merged is shown as such
    assert "0.250" in page
    assert '<td class="left wide">d, e; dropped: e</td>' in page


def test_page_needs_no_network_and_no_script(tmp_path: Path) -> None:
    image = tmp_path / "frontier.png"
    image.write_bytes(b"\x89PNG sample")
    page = write_report(_run(image), tmp_path / "report.html").read_text(encoding="utf-8")
    assert base64.b64encode(image.read_bytes()).decode() in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
    assert "http" not in page


def test_page_leaves_out_what_a_run_does_not_have(tmp_path: Path) -> None:
    bare = ReportData(title="t", model="m", data="d", device="c", verdict="v", rows=(ORIGINAL,))
    page = write_report(bare, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 1
    assert "None" not in page


def test_budget_that_was_missed_is_marked(tmp_path: Path) -> None:
    page = write_report(replace(_run(), is_budget_met=False), tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'class="verdict missed"' in page


def test_table_has_a_line_a_metric_and_fits_into_80_columns() -> None:
    text = result_table_text([ORIGINAL, COMPRESSED])
    for name in ("accuracy", "latency, median", "95 % interval", "predicted", "layers", "parameters", "multiply-adds"):
        assert any(line.strip().startswith(name) for line in text.splitlines()), name
    assert "6.31 ms" in text
    assert "1.33× as fast" in text
    assert "−0.7 points" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "agreement" not in text


def test_table_shows_agreement_where_it_was_measured() -> None:
    row = replace(COMPRESSED, accuracy_pct=None, agreement_pct=91.25)
    text = result_table_text([replace(ORIGINAL, accuracy_pct=None), row])
    assert "91.2 %" in text
    assert "accuracy" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.ms_text(None), "–"),
        (words.ms_text(0.08124), "0.0812 ms"),
        (words.ms_text(1.234), "1.23 ms"),
        (words.ms_text(45.67), "45.7 ms"),
        (words.ms_text(12345.6), "12346 ms"),
        (words.interval_text(1.2, 1.25), "1.20–1.25"),
        (words.interval_text(None, 1.0), ""),
        (words.points_text(-0.44), "−0.4"),
        (words.points_text(0.04), "±0.0"),
        (words.points_text(-0.04), "±0.0"),
        (words.points_text(1.0), "+1.0"),
        (words.count_text(999), "999"),
        (words.count_text(5100), "5.10 k"),
        (words.count_text(999_999), "1.00 M"),
        (words.count_text(2_223_872), "2.22 M"),
        (words.count_text(312_000_000), "312 M"),
        (words.count_text(15_500_000_000), "15.5 G"),
        (words.duration_text(0.42), "0.4 s"),
        (words.duration_text(59.7), "1 min 00 s"),
        (words.duration_text(185), "3 min 05 s"),
        (words.duration_text(7800), "2 h 10 min"),
        (words.speedup_text(3.0, 2.0), "1.50×"),
    ],
)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected
