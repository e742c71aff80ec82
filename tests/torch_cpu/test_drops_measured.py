"""Options with dropped layers in all that measures: profile, importance, solver, budget loop, prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import layerfold as lf
from layerfold.budget import Budget
from layerfold.cli import main
from layerfold.data import ImageData
from layerfold.graph.dropping import dropped_layers
from layerfold.importance import list_requests
from layerfold.importance.journal import Estimate, Journal
from layerfold.pipeline.backend_meter import BackendMeter
from layerfold.pipeline.budget_loop import meet_budget
from layerfold.profiler import get_backend
from layerfold.profiler.plans.fitted import beliefs_of, plans_of, predicted_interval_ms

_FILE = """
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


def net(num_classes=10):
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [2, 1, 1, 1], num_classes=num_classes)
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    model.layer4, model.fc = nn.Identity(), nn.Linear(256, num_classes)
    return model
"""

Prepared = tuple[torch.nn.Module, lf.Network, lf.LatencyTable]


@pytest.fixture(scope="module")
def data() -> ImageData:
    return lf.open_data("mnist5k", input_shape=(1, 32, 32), mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a ResNet-10 for small images, in a user's own file."""
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(_FILE)
    return f"{path}:net"


@pytest.fixture(scope="module")
def prepared(source: str) -> Prepared:
    """Return the ResNet, and its table with options that drop layers."""
    model = lf.load_model(source, num_classes=10).module.eval()
    net = lf.trace_network(model, torch.zeros(1, 1, 32, 32))
    options = net.candidates(max_kernel=5, layer_norms=lf.layer_norms(model, net))
    table = lf.profile_network(
        model, net, get_backend("onnxruntime"), cache=False, candidates=options, num_plans=8, cap_s=0.02, progress=False
    )
    return model, net, table


def test_table_has_the_options_and_survives_its_file(prepared: Prepared, tmp_path: Path) -> None:
    _, net, table = prepared
    drops = [entry for entry in table.entries if entry.drops]
    assert drops
    assert all(entry.kept is not None and entry.merged for entry in drops)
    assert any(plan.dropped for plan in plans_of(table))
    for entry in drops:
        segment = net.segment(entry.start, entry.end, entry.dropped or ())
        assert (segment.merged, segment.signature) == (entry.merged, entry.signature)
    table.write(tmp_path / "t.csv")
    again = lf.LatencyTable.read(tmp_path / "t.csv")
    assert again.hash == table.hash
    assert [entry.kept for entry in again.entries] == [entry.kept for entry in table.entries]


def test_dropping_saves_more_than_merging_alone(prepared: Prepared) -> None:
    _, _, table = prepared
    whole = lf.LatencyTable([entry for entry in table.entries if not entry.drops], provenance=table.provenance)
    without, with_drops = (lf.solve_frontier(each, _no_losses(each)) for each in (whole, table))
    assert with_drops[0].predicted_ms < 0.9 * without[0].predicted_ms
    assert with_drops[0].kept_layers is not None


def test_interval_of_a_plan_that_drops_layers(prepared: Prepared) -> None:
    _, net, table = prepared
    frontier = lf.solve_frontier(table, _no_losses(table))
    solution = next(each for each in reversed(list(frontier)) if each.kept_layers is not None)
    assert solution.kept_layers is not None
    dropped = dropped_layers(net, solution.kept_layers)
    low, high = predicted_interval_ms(table, solution.merge_pos, dropped)
    # An entry is never below a twentieth of its layers, whatever the fit says: eight plans on a busy machine say much.
    found = beliefs_of(table).predict(solution.merge_pos, dropped)
    assert (low, high) == pytest.approx((found.low * table.original_ms, found.high * table.original_ms))
    assert found.ratio == pytest.approx(table.predict_ms(solution) / table.original_ms, abs=0.2)


def test_importance_of_the_options_is_estimated_once_and_kept(prepared: Prepared, data: ImageData, tmp_path) -> None:
    model, net, table = prepared
    some = [entry for entry in table.entries if entry.drops][:3]
    few = lf.LatencyTable(
        [*(e for e in table.entries if e.end - e.start == 1 and not e.drops), *some], provenance=table.provenance
    )
    journal = tmp_path / "imp.journal"

    def estimate() -> lf.ImportanceTable:
        return lf.estimate_importance(
            model,
            net,
            data,
            latency=few,
            score="loss",
            holdout_images=32,
            calibration_images=32,
            journal_path=journal,
            progress=False,
        )

    first = estimate()
    useful = set(few.useful_changes())
    assert {(e.start, e.end, e.merged) for e in first.entries if e.kept is not None} == useful
    assert len(useful) > 0
    lines = journal.read_text()
    second = estimate()
    assert journal.read_text() == lines
    assert [e.importance for e in second.entries] == [e.importance for e in first.entries]
    first.write(tmp_path / "imp.csv")
    again = lf.ImportanceTable.read(tmp_path / "imp.csv")
    assert {e.key for e in again.entries} == {e.key for e in first.entries}


def test_journal_tells_options_apart(prepared: Prepared, tmp_path: Path) -> None:
    model, net, _ = prepared
    options = net.candidates(max_kernel=5, layer_norms=lf.layer_norms(model, net))
    requests = list_requests(net, options, fill_slots=False)
    assert len(set(requests)) == len(requests)
    journal = Journal(tmp_path / "j", {})
    for number, request in enumerate(requests):
        journal.add(request, Estimate({"val_acc": float(number)}, 0.0))
    again = Journal(tmp_path / "j", {})
    assert [again.get(request) for request in requests] == [
        Estimate({"val_acc": float(n)}, 0.0) for n in range(len(requests))
    ]


def test_budget_beyond_merging_is_kept_by_dropping(prepared: Prepared) -> None:
    model, net, table = prepared
    meter = BackendMeter(model, net, table, get_backend("onnxruntime"))
    found = meet_budget(net, table, _no_losses(table), Budget(speedup=1.5), meter, progress=False, cap_s=1.0)
    assert found.solution.kept_layers is not None
    assert found.verification.ratio_high <= 1 / 1.5
    merged = lf.merge_network(lf.build_train_form(model, net, found.solution).eval())
    assert merged(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_plans_that_drop_layers_are_climbed_from(prepared: Prepared) -> None:
    """A plan is the better, the fewer layers it drops: neighbours without a dropping segment are looked at."""
    model, net, table = prepared
    asked: list[lf.Solution] = []

    def score(solution: lf.Solution) -> float:
        asked.append(solution)
        return float(len(solution.kept_layers or net.layers))

    meter = BackendMeter(model, net, table, get_backend("onnxruntime"))
    found = meet_budget(
        net, table, _no_losses(table), Budget(speedup=1.15), meter, score_plan=score, progress=False, cap_s=1.0
    )
    first = found.wholes[0].solution
    dropping = [each for each in first.segments if each.plan == "drop"]
    assert asked[0].plan == first.plan
    assert dropping, "or nothing is climbed from"
    assert len(asked) > 1
    assert score(found.solution) == max(each.score for each in found.wholes)
    for whole in found.wholes:
        assert not whole.left_out & {each.key for each in whole.solution.segments}


def test_commands_one_after_the_other(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latency, importance, solution, weights = (
        str(tmp_path / name) for name in ("l.csv", "i.csv", "s.json", "w.safetensors")
    )
    save_file(lf.load_model(source).module.state_dict(), weights)
    model = [source, "--input", "1x32x32", "--weights", weights]
    common = ["--max-kernel", "3"]
    assert main(["inspect", *model, *common, "--drop-layers", "--brief"]) == 0
    assert "further options without some of" in capsys.readouterr().out
    assert (
        main(
            [
                "profile",
                *model,
                *common,
                "--drop-layers",
                "--cap-s",
                "0.02",
                "--cache",
                str(tmp_path / "c"),
                "-o",
                latency,
                "--json",
                "--quiet",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["segments_with_drops"] > 0
    assert (
        main(
            [
                "importance",
                *model,
                "--data",
                "mnist5k",
                "--latency",
                latency,
                "--holdout-images",
                "16",
                "--calibration-images",
                "32",
                "--score",
                "loss",
                "-o",
                importance,
                "--quiet",
            ]
        )
        == 0
    )
    least_ms = lf.solve_frontier(lf.LatencyTable.read(latency), lf.ImportanceTable.read(importance))[0].predicted_ms
    budget = ["--budget", f"{1.02 * least_ms}ms"]  # beyond what merging alone reaches, whatever was measured
    assert main(["solve", "--time-path", latency, "--imp-path", importance, *budget, "-o", solution]) == 0
    assert lf.Solution.read(solution).kept_layers is not None
    capsys.readouterr()
    assert (
        main(
            [
                "verify",
                *model,
                "--solution",
                solution,
                "--latency",
                latency,
                "--cap-s",
                "1",
                "--json",
                "--quiet",
                "--budget",
                "1000ms",
                "--plot",
                str(tmp_path / "time.png"),
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["predicted_low_ms"] < found["predicted_high_ms"]
    assert found["predicted_ms"] > 0
    assert (tmp_path / "time.png").stat().st_size > 1000


def _no_losses(table: lf.LatencyTable) -> lf.ImportanceTable:
    """Return importances by which a layer may rather be dropped than merged, whatever the machine measured."""
    entries = []
    for entry in table.entries:
        states = {"start_act": entry.start_act or 0, "end_act": entry.end_act or 0}
        dropped = len(entry.dropped or ())
        lost = 0.1 * dropped + max(entry.end - entry.start - dropped - 1, 0)
        entries.append(
            lf.ImportanceEntry(
                start=entry.start,
                end=entry.end,
                **states,
                importance=-lost,
                merged=entry.merged if entry.drops else "",
                kept=entry.kept,
            )
        )
    return lf.ImportanceTable(entries)
