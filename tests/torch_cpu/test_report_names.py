"""Names of users' files and layers in pages, pictures and CSV: shown as they are, never run, never broken."""

from __future__ import annotations

import csv
import io
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.pipeline.solution_comparison import ComparedNetwork, SolutionComparison
from layerfold.profiler.benchmark import MeasuredOn
from layerfold.report import ReportData, ResultRow, network_svg, write_report
from layerfold.report.solutions_plot import ComparedPoint, comparison_plot

NAMES = [
    "<script>alert(1)</script>",
    "a\"b'c&d",
    "$x^{$ and $\\frac$",
    "own\x1b[31m.py:net",
    "\u202egnp.py",
    "\udcff.py:net",
    "=cmd()",
    "@SUM(A1)",
    "100% \\n",
    "a\nb",
    "\x00",
    "$$",
]
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")']


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def _tags(page: str) -> list[str]:
    parser = _Tags()
    parser.feed(page)
    return parser.tags


def _page(folder: Path, name: str) -> str:
    row = ResultRow(
        name=name,
        accuracy_pct=1.0,
        latency_ms=1.0,
        low_ms=1.0,
        high_ms=1.0,
        predicted_ms=1.0,
        num_layers=1,
        num_params=1,
        macs=1,
    )
    data = ReportData(
        title=name,
        model=name,
        data=name,
        device=name,
        budget_ms=1.0,
        is_budget_met=True,
        verdict=name,
        rows=(row, row),
        files=((name, name),),
        provenance=((name, name),),
        notes=(name,),
        command=f"layerfold {name}",
    )
    return write_report(data, folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_changes_nothing_of_the_page_but_its_text(name: str, tmp_path: Path) -> None:
    page = _page(tmp_path, name)
    assert _tags(page) == _tags(_page(tmp_path, "plain"))
    assert not set(page) & {"\x1b", "\x00", "\u202e", "\udcff"}


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_drawing_with_any_name_is_xml(name: str) -> None:
    convs = [part for _ in range(3) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    net = lf.trace_network(nn.Sequential(*convs), torch.zeros(1, 3, 8, 8))
    layers = [replace(layer, name=name) for layer in net.layers]
    svg = network_svg(replace(net, name=name, layers=tuple(layers)), title=name)
    root = ET.fromstring(svg)
    assert len(list(root.iter())) == len(list(ET.fromstring(network_svg(net, title="plain")).iter()))


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_picture_with_any_name_is_drawn(name: str, tmp_path: Path) -> None:
    points = [
        ComparedPoint(name=name + str(index), measured_ms=1.0 + index, low_ms=1.0, high_ms=2.0, accuracy_pct=value)
        for index, value in enumerate((90.0, None))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no font has every sign
        for few, file in ((points, "values.png"), ([replace(points[0], accuracy_pct=None)], "rows.svg")):
            assert comparison_plot(few, tmp_path / file, title=name).stat().st_size > 1000


@pytest.mark.parametrize("name", FORMULAS, ids=ascii)
def test_no_cell_of_a_comparison_is_a_formula(name: str, tmp_path: Path) -> None:
    network = ComparedNetwork(
        name=name,
        predicted_ms=None,
        measured_ms=1.5,
        low_ms=1.0,
        high_ms=2.0,
        ratio=1.0,
        ratio_low=1.0,
        ratio_high=1.0,
        is_settled=True,
        importance=-0.5,
        accuracy_pct=None,
        num_activations=1,
        num_convs=1,
        num_params=1,
        macs=1,
        note=name,
    )
    provenance: MeasuredOn = {
        "backend": "onnxruntime",
        "versions": {},
        "device": "cpu",
        "driver": "",
        "options": {},
        "batch": 1,
        "conditions": {},
    }
    SolutionComparison(networks=(network,), provenance=provenance).write_csv(tmp_path / "compare.csv")
    (row,) = csv.DictReader(io.StringIO((tmp_path / "compare.csv").read_bytes().decode()))
    shown = f"'{name}" if name[0] != "\r" else r"\r=1"
    assert (row["name"], row["note"]) == (shown, shown)
    assert (row["importance"], row["predicted_ms"], row["measured_ms"]) == ("-0.5", "", "1.5")


def test_a_frontier_as_csv_holds_numbers_and_positions_only(tmp_path: Path) -> None:
    (tmp_path / "time.csv").write_text("id,st,end,time,stdev\n0,0,1,1.0,0\n1,1,2,1.0,0\n2,0,2,1.5,0\n")
    (tmp_path / "imp.csv").write_text(
        "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc\n"
        "0,0,1,1,1,,,,0\n1,1,2,1,1,,,,0\n2,0,2,1,1,,,,-2\n"
    )
    latency, importance = lf.LatencyTable.read(tmp_path / "time.csv"), lf.ImportanceTable.read(tmp_path / "imp.csv")
    frontier = lf.solve_frontier(latency, importance)
    frontier.write_csv(tmp_path / "frontier.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "frontier.csv").read_text())))
    assert [(float(row["latency_ms"]), float(row["importance"]), row["merge_pos"]) for row in rows] == [
        (1.5, -2.0, "2"),
        (2.0, 0.0, "1,2"),
    ]
