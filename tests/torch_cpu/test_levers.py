"""A third lever, written in one file outside the package, goes through tables, solver, solution file and forms."""

from __future__ import annotations

import copy
import csv
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.errors import MissingEntryError, SolutionError, TableError, UsageError
from layerfold.importance.requests import list_requests
from layerfold.importance.subject import Subject
from layerfold.profiler import get_backend
from layerfold.profiler.plans.fitted import beliefs_of, plans_of
from layerfold.solver import Solution, SolutionSegment, importance_of
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable
from layerfold.tables.levers import Change, lever_names, lever_of
from tests.oracles.drops import enumerate_drop_solutions
from tests.oracles.instances import Problem
from tests.torch_cpu.exactness import TOLERANCE, randomise, relative_error

Traced = tuple[nn.Module, lf.Network, torch.Tensor]


@pytest.fixture(autouse=True)
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the lever of ``tests/oracles/centre_lever.py`` as an installed package would."""
    installed = tmp_path / "installed" / "acme_lever-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-lever\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[layerfold.levers]\ncentre = tests.oracles.centre_lever:Centre\n")
    monkeypatch.syspath_prepend(str(installed.parent))


@pytest.fixture(scope="module")
def traced() -> Traced:
    layers: list[nn.Module] = []
    for channels, out in ((3, 6), (6, 6), (6, 6), (6, 4)):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    model = randomise(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model, lf.trace_network(model, x), x


def tables_of(net: lf.Network, seed: int) -> tuple[LatencyTable, ImportanceTable]:
    """Return tables of random numbers for all that merge, drop and centre offer."""
    rng = random.Random(seed)
    norms = {layer.index: rng.random() for layer in net.layers}
    segments = net.candidates(max_kernel=5, layer_norms=norms, levers=("merge", "drop", "centre"))
    latencies = [
        LatencyEntry(
            start=each.start,
            end=each.end,
            latency_ms=0.0 if each.is_free else rng.uniform(0.5, 1.0) * (0.7 if each.change else 1.0),
            signature=each.signature,
            macs=each.macs,
            params=each.conv.num_params,
            merged=each.merged if each.change else "",
            change=each.change,
        )
        for each in segments
    ]
    importances = [
        ImportanceEntry(
            start=each.start,
            end=each.end,
            start_act=each.start_act,
            end_act=each.end_act,
            importance=-rng.uniform(0.0, 2.0) * (each.end - each.start - (each.change is None) + 0.1),
            merged=each.merged,
            change=each.change,
        )
        for each in list_requests(net, segments, fill_slots=True)
    ]
    return LatencyTable(latencies), ImportanceTable(importances)


def by_hand(*layers: int, start: int = 1, end: int = 2) -> Solution:
    changed = SolutionSegment(start=start, end=end, plan="centre", layers=layers)
    stops = tuple(stop for stop in (1, 2, 3, 4) if not start < stop < end)
    return Solution(act_pos=stops, merge_pos=stops, segments=(changed,))


def test_the_lever_is_found_by_its_name_and_an_unknown_one_is_named(traced: Traced) -> None:
    assert lever_names() == ("merge", "drop", "centre")
    assert lever_of("centre:any").name == "centre"
    with pytest.raises(UsageError, match="levers='shave': no lever of that name; known are merge, drop, centre"):
        traced[1].candidates(levers=("shave",))


def test_candidates_of_the_levers_named_and_no_others(traced: Traced) -> None:
    net = traced[1]
    alone = net.candidates(levers=("centre",))
    assert [each.key for each in alone if each.change is None] == [(p, p + 1) for p in range(4)]
    changed = [each for each in alone if each.change is not None]
    assert {each.key for each in changed} >= {(1, 2, "1x1 +centre"), (1, 3, "3x3 +centre")}
    assert net.candidates(levers=("merge", "centre")) == [*net.candidates(), *changed]
    assert net.changed([]).hash == net.hash != net.changed([Change("centre", (2,))]).hash


def test_tables_with_every_lever_survive_a_round_trip(traced: Traced, tmp_path: Path) -> None:
    latency, importance = tables_of(traced[1], 0)
    latency.write(tmp_path / "latency.csv")
    importance.write(tmp_path / "importance.csv")
    read, estimated = LatencyTable.read(tmp_path / "latency.csv"), ImportanceTable.read(tmp_path / "importance.csv")
    assert (read.hash, read.keys) == (latency.hash, latency.keys)
    assert [each.change for each in read.entries] == [each.change for each in latency.entries]
    assert estimated.hash == importance.hash
    assert [(each.change, each.extra) for each in estimated.entries] == [(e.change, {}) for e in importance.entries]
    assert {each.change.lever for each in read.entries if each.change} == {"drop", "centre"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,1.0,3x3 +shave,shave,1", "row 3, column variant='shave': no lever of that name"),
        ("0,1,1.0,1x1 +centre,centre,2", "row 3, column layers: '2', expected layers of the segment"),
        ("0,1,1.0,1x1,centre,1", "row 3, column merged: '1x1', expected the merged kernel with its change"),
        ("0,1,1.0,1x1 +drop,drop,1", "row 3, column variant: 'drop', expected a lever that stands in this column"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "latency.csv"
    path.write_text(f"st,end,time,merged,variant,layers\n0,1,2.0,,,\n{row}\n")
    with pytest.raises(TableError) as caught:
        LatencyTable.read(path)
    assert message in str(caught.value)


def test_the_solver_agrees_with_enumeration_and_its_solutions_are_built(traced: Traced, tmp_path: Path) -> None:
    model, net, x = traced
    words, built = set(), 0
    for seed in range(12):
        latency, importance = tables_of(net, seed)
        problem = Problem(latencies=(latency,), importance=importance, budgets_ms=(99.0,))
        every = enumerate_drop_solutions(problem)
        frontier = lf.solve_frontier(latency, importance)
        for solution in frontier:
            best = max(e.importance for e in every if e.latencies_ms[0] <= (solution.predicted_ms or 0.0) + 1e-12)
            assert solution.importance == pytest.approx(best, abs=1e-9), f"seed {seed}"
            assert latency.predict_ms(solution) == solution.predicted_ms
            assert importance_of(solution, replace_table(importance), latency.chains, frozenset([4])) == pytest.approx(
                solution.importance
            )
            solution.write(tmp_path / "solution.json")
            assert Solution.read(tmp_path / "solution.json") == solution
            words |= {each.plan for each in solution.segments}
            if solution.changes and built < 12:
                assert_exact(model, net, solution, x)
                built += 1
    assert words == {"keep", "merge", "drop", "centre"}
    assert built == 12


def replace_table(importance: ImportanceTable) -> ImportanceTable:
    """Return a table of another hash, so that a solution's importance is summed anew."""
    first, *others = importance.entries
    return ImportanceTable([*others, replace(first, importance=first.importance - 1e-12)])


def assert_exact(model: nn.Module, net: lf.Network, solution: Solution, x: torch.Tensor) -> None:
    form = lf.build_train_form(model, net, solution).eval()
    merged = lf.merge_network(form)
    assert relative_error(form(x), merged(x)) < TOLERANCE


@pytest.mark.parametrize(("layers", "start", "end"), [((2,), 1, 2), ((3,), 1, 3), ((2, 3), 1, 3)])
def test_the_train_form_computes_the_network_written_with_the_change(
    traced: Traced, layers: tuple[int, ...], start: int, end: int
) -> None:
    model, net, x = traced
    solution = by_hand(*layers, start=start, end=end)
    expected = copy.deepcopy(model)
    assert isinstance(expected, nn.Sequential)
    for index in layers:  # all but the centre of the kernel is 0
        weight = expected[3 * (index - 1)].weight
        assert isinstance(weight, torch.Tensor)
        weight.data *= torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    if end - start > 1:
        expected[3 * start + 2] = nn.Identity()
    form = lf.build_train_form(model, net, solution).eval()
    assert relative_error(form(x), expected(x)) < TOLERANCE
    assert_exact(model, net, solution, x)
    assert [each.change for each in net.segments_in(solution) if each.change] == [Change("centre", layers)]


def test_the_lever_is_measured_alone_and_in_whole_networks(traced: Traced, tmp_path: Path) -> None:
    model, net = copy.deepcopy(traced[0]).float(), traced[1]
    options = net.candidates(max_kernel=5, levers=("merge", "centre"))
    table = lf.profile_network(
        model, net, get_backend("onnxruntime"), cache=False, candidates=options, num_plans=6, cap_s=0.01, progress=False
    )
    assert [each.change for each in table.entries] == [each.change for each in options]
    assert any(plan.changes for plan in plans_of(table)), "whole networks with the change are timed"
    table.write(tmp_path / "t.csv")
    again = LatencyTable.read(tmp_path / "t.csv")
    assert plans_of(again) == plans_of(table)
    stops, changes = (1, 2, 3, 4), (Change("centre", (2,)),)
    assert beliefs_of(again).predict(stops, (), changes).ratio != beliefs_of(again).predict(stops).ratio
    with pytest.raises(MissingEntryError, match=r"segment \(1, 2\) with centre:x of 2;"):
        beliefs_of(again).predict(stops, (), (Change("centre:x", (2,)),))


def test_the_importance_of_a_change_is_that_of_the_network_with_it(traced: Traced) -> None:
    model, net, x = copy.deepcopy(traced[0]).float(), traced[1], traced[2].float()
    request = next(
        each for each in list_requests(net, net.candidates(levers=("centre",)), fill_slots=False) if each.change
    )
    images = torch.utils.data.TensorDataset(x, torch.arange(2))
    data = lf.ImageData(name="two", num_classes=3, input_shape=(3, 9, 9), train=images, holdout=images, test=images)
    options = lf.ImportanceOptions(holdout_images=2, calibration_images=2)
    subject = Subject(model, net, data, options, is_recalibrated=False)
    assert request.change is not None
    expected = lf.build_train_form(
        model, net, by_hand(*request.change.layers or (), start=request.start, end=request.end)
    )
    assert relative_error(subject.changed_form(request)(x), expected.eval()(x)) < 1e-5
    assert relative_error(subject.original_form(x), expected(x)) > 1e-3


def test_a_plan_that_nothing_builds_is_refused(traced: Traced) -> None:
    model, net, _ = traced
    segment = SolutionSegment(start=1, end=2, plan="shave", layers=(2,))
    for solution, message in (
        (
            replace(by_hand(2), segments=(segment,)),
            "plan='shave': no lever of that name; known are merge, drop, centre",
        ),
        (by_hand(), "its plan 'centre'"),
        (by_hand(9), "centre of layer 9: this network has layers 1..4"),
        (by_hand(3), "its plan 'centre'"),
        (replace(by_hand(2), segments=(replace(segment, plan="drop"),)), "its plan 'drop'"),
        (replace(by_hand(2, 3, start=1, end=3), kept_layers=(1, 2, 4)), "changed by centre and drop"),
    ):
        with pytest.raises(SolutionError) as caught:
            lf.build_train_form(model, net, solution)
        assert message in str(caught.value)


def test_explanations_and_frontier_files_name_the_change(traced: Traced, tmp_path: Path) -> None:
    latency, importance = tables_of(traced[1], 3)
    frontier = lf.solve_frontier(latency, importance)
    index = next(index for index, each in enumerate(frontier) if each.changes)
    assert any("with centre of " in line for line in lf.explain_point(frontier, index).lines())
    following = [lf.explain_point(frontier, each).lines()[-1] for each in range(len(frontier))]
    assert any("-centre of " in line for line in following)
    (word, layers), *_ = frontier[index].changes
    assert frontier.to_json()["points"][index]["changes"][0] == [word, list(layers or ())]  # type: ignore[index,call-overload]
    frontier.write_csv(tmp_path / "frontier.csv")
    with (tmp_path / "frontier.csv").open() as file:
        assert list(csv.DictReader(file))[index]["changes"].startswith("centre ")
    with pytest.raises(SolutionError, match=r"a \.pth file has no place for centre; write it as JSON"):
        frontier[index].write_checkpoint(tmp_path / "solution.pth")
