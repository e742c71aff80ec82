"""Comparing solutions: one measurement for all, one table, one picture, CSV and JSON; bad input in one line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.cli import main
from layerfold.report.solutions_plot import ComparedPoint, comparison_plot
from tests.torch_cpu.networks import make_network, random_solution
from tests.torch_cpu.search_networks import random_network, random_table
from tests.torch_cpu.test_search_training import images

_QUICK: dict[str, Any] = {"cap_s": 0.1, "progress": False}


@pytest.fixture(scope="module")
def network() -> tuple[torch.nn.Module, lf.Network]:
    model = random_network(3, blocks=4).eval()
    return model, lf.trace_network(model, torch.zeros(1, 3, 12, 12))


def solutions_of(net: lf.Network) -> dict[str, lf.Solution]:
    import random

    whole = lf.Solution(act_pos=net.original_act_pos, merge_pos=tuple(range(1, len(net.layers) + 1)))
    return {"as it is": whole, "random": random_solution(net, net.candidates(), random.Random(0))}


def test_solutions_stand_beside_the_original(network: tuple[torch.nn.Module, lf.Network], tmp_path: Path) -> None:
    model, net = network
    table, solutions = random_table(net, 0), solutions_of(net)
    finetuned = lf.merge_network(lf.build_train_form(model, net, solutions["random"]).eval())
    found = lf.compare_solutions(
        model,
        net,
        solutions,
        latency=table,
        networks={"random": finetuned},
        data=images(),
        accuracies_pct={"as it is": 12.5, "random": 1.0},
        **_QUICK,
    )
    assert [each.name for each in found.networks] == ["original", "as it is", "random"]
    original, same, random = found.networks
    assert (original.ratio, original.importance) == (1.0, 0.0)
    assert original.predicted_ms == same.predicted_ms == pytest.approx(table.original_ms)
    assert random.predicted_ms == table.predict_ms(solutions["random"])
    assert (original.num_convs, original.macs) == (same.num_convs, same.macs)
    assert original.macs == net.macs
    assert random.num_convs == len(net.segments_of(solutions["random"].merge_pos))
    assert original.num_activations == same.num_activations == len(net.original_act_pos)
    test = images().split("test")
    assert random.accuracy_pct == lf.evaluate_network(finetuned, test).accuracy_pct
    assert original.accuracy_pct == lf.evaluate_network(model, test).accuracy_pct
    assert same.accuracy_pct == 12.5
    assert all(each.low_ms <= each.measured_ms <= each.high_ms for each in found.networks)
    assert found["random"].speedup == pytest.approx(1 / random.ratio)
    found.write_csv(tmp_path / "compare.csv")
    rows = list(csv.DictReader((tmp_path / "compare.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["original", "as it is", "random"]
    assert float(rows[2]["speedup"]) == random.speedup
    assert rows[0]["prediction_error"] != ""
    assert json.loads(json.dumps(found.to_json()))["networks"][2]["num_convs"] == random.num_convs
    found.plot(tmp_path / "compare.png", title="three networks")
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.width > 1000


def test_without_labels_networks_are_compared_by_agreement(
    network: tuple[torch.nn.Module, lf.Network], tmp_path: Path
) -> None:
    model, net = network
    solutions = solutions_of(net)
    finetuned = lf.merge_network(lf.build_train_form(model, net, solutions["random"]).eval())
    labelled = images()
    pictures = labelled.split("test")._dataset.tensors[0]
    bare = TensorDataset(pictures)
    data = replace(labelled, train=bare, holdout=bare, test=bare, is_labelled=False, fingerprint="")
    found = lf.compare_solutions(model, net, solutions, networks={"random": finetuned}, data=data, **_QUICK)
    assert [each.accuracy_pct for each in found.networks] == [None] * 3
    with torch.no_grad():
        same = (finetuned(pictures).argmax(1) == model.eval()(pictures).argmax(1)).double().mean()
    assert [each.agreement_pct for each in found.networks] == [100.0, None, pytest.approx(100 * float(same))]
    found.plot(tmp_path / "compare.svg")
    assert "agreement with the original" in (tmp_path / "compare.svg").read_text()


def test_what_a_table_cannot_say_is_noted(network: tuple[torch.nn.Module, lf.Network]) -> None:
    model, net = network
    solutions = solutions_of(net)
    merged = next(s for s in net.segments_of(solutions["random"].merge_pos) if s.num_layers > 1)
    full = random_table(net, 0)
    kept = [entry for entry in full.entries if (entry.start, entry.end) != (merged.start, merged.end)]
    table = lf.LatencyTable(kept, provenance=full.provenance)
    singles = [
        lf.ImportanceEntry(
            start=p,
            end=p + 1,
            start_act=int(p == chain.start or net.has_activation(p)),
            end_act=int(net.has_activation(p + 1)),
            importance=0.0,
        )
        for chain in net.chains
        for p in range(chain.start, chain.end)
    ]
    found = lf.compare_solutions(model, net, solutions, latency=table, importance=lf.ImportanceTable(singles), **_QUICK)
    assert found["as it is"].note == ""
    assert found["as it is"].importance == 0.0
    assert (found["random"].predicted_ms, found["random"].importance) == (None, None)
    assert "no prediction: " in found["random"].note
    assert "no importance: " in found["random"].note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"solutions": {}}, "solutions is empty"),
        (
            {"solutions": {"original": lf.Solution(act_pos=(), merge_pos=(1,))}},
            "'original' is the name of the unmodified",
        ),
        ({"networks": {"other": torch.nn.Identity()}}, "networks: 'other' is none of the solutions as it is, random"),
        ({"accuracies_pct": {"other": 5.0}}, "accuracies_pct: 'other' is none of"),
        ({"solutions": {"far": lf.Solution(act_pos=(), merge_pos=(999,))}}, "far: merge_pos holds 999"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(
    network: tuple[torch.nn.Module, lf.Network], change: dict[str, Any], words: str
) -> None:
    model, net = network
    with pytest.raises(lf.UsageError) as caught:
        lf.compare_solutions(model, net, change.pop("solutions", solutions_of(net)), **change, **_QUICK)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("known", ["accuracy_pct", "importance", "nothing"])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_picture_shows_what_is_known(tmp_path: Path, known: str, suffix: str) -> None:
    values: dict[str, float] = {} if known == "nothing" else {known: 50.0}
    points = [
        ComparedPoint(name=name, measured_ms=ms, low_ms=ms - 0.1, high_ms=ms + 0.1, predicted_ms=ms - 0.2, **given)
        for name, ms, given in (("original", 2.0, values), ("a", 1.5, values), ("b", 1.2, {}))
    ]
    path = comparison_plot(points, tmp_path / f"plot{suffix}", title="a title")
    assert path.stat().st_size > 2000
    if suffix == ".svg":
        text = path.read_text()
        assert ("below: value unknown" in text) == (known != "nothing")


def test_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lf.UsageError, match=r"expected a name that ends in \.png, \.svg or \.pdf"):
        comparison_plot([ComparedPoint(name="a", measured_ms=1, low_ms=1, high_ms=1)], tmp_path / "plot.gif")
    with pytest.raises(lf.UsageError, match="points is empty"):
        comparison_plot([], tmp_path / "plot.png")


_MODEL = ["timm:mobilenetv2_035", "--input", "1x32x32", "--num-classes", "10"]
_DATA = ["--data", "mnist5k", "--batch-size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a pattern, a finetuned network of it, and that one merged."""
    made = tmp_path_factory.mktemp("compare")
    steps: list[list[object]] = [
        ["search", *_MODEL, "--pattern", "mobilenetv2_140-E", "-o", made / "pattern.json"],
        [
            "finetune",
            *_MODEL,
            *_DATA,
            "--steps",
            "2",
            "--solution",
            made / "pattern.json",
            "--quiet",
            "-o",
            made / "finetuned.safetensors",
        ],
        ["merge", made / "finetuned.safetensors", "-o", made / "merged.safetensors"],
    ]
    for step in steps:
        assert main([str(each) for each in step]) == 0
    return made


def _compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["compare", *_MODEL[:1], *map(str, arguments), *_MODEL[1:], "--cap-s", "0.1", "--quiet"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_takes_solutions_networks_and_patterns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = lf.load_model("timm:mobilenetv2_035", in_channels=1, num_classes=10).module
    net = lf.trace_network(model, torch.zeros(1, 1, 32, 32))
    lf.Solution(act_pos=[52], merge_pos=range(1, 53)).write_checkpoint(folder / "published.pth")
    random_table(net, 0).write(folder / "latency.csv")
    code, out, err = _compare(
        capsys,
        folder / "pattern.json",
        f"tuned={folder / 'finetuned.safetensors'}",
        folder / "merged.safetensors",
        folder / "published.pth",
        "pattern:mobilenetv2_140-A",
        "--latency",
        folder / "latency.csv",
        "--csv",
        folder / "compare.csv",
        "--plot",
        folder / "compare.png",
        "--json",
    )
    assert code == 0, err
    found = {each["name"]: each for each in json.loads(out)["networks"]}
    assert list(found) == ["original", "pattern", "tuned", "merged", "published", "mobilenetv2_140-A"]
    facts = json.loads((folder / "finetuned.safetensors.json").read_text())["facts"]["test"]
    assert found["tuned"]["accuracy_pct"] == facts["accuracy_pct"]
    assert found["original"]["accuracy_pct"] == facts["original_accuracy_pct"]
    assert found["pattern"]["accuracy_pct"] is None
    assert found["tuned"]["num_convs"] == found["merged"]["num_convs"] == found["pattern"]["num_convs"] == 30
    assert found["published"]["num_convs"] == found["original"]["num_convs"] == 52
    assert all(each["predicted_ms"] > 0 for each in found.values())
    assert len(list(csv.DictReader((folder / "compare.csv").read_text().splitlines()))) == 6
    assert (folder / "compare.png").stat().st_size > 10_000
    refused = _compare(capsys, folder / "pattern.json", "--csv", folder / "compare.csv")
    assert (refused[0], refused[1]) == (2, "")
    assert "--csv" in refused[2]


def test_table_for_people_has_a_row_a_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _compare(capsys, f"tuned={folder / 'finetuned.safetensors'}", "--data", "mnist5k")
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines()[:3]]
    assert rows == ["network", "original", "tuned"]
    assert "onnxruntime on " in out
    assert out.splitlines()[2].count("%") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.json"], "missing.json: no such file"),
        (["a=pattern:mobilenetv2_140-Q"], "nearest: mobilenetv2_140-"),
        (["pattern:mobilenetv2_140-A", "pattern:mobilenetv2_140-A"], "the name 'mobilenetv2_140-A' is taken"),
        (["original=pattern:mobilenetv2_140-A"], "the name 'original' is taken"),
        (["=x.json"], "give FILE, or NAME=FILE"),
        (["pattern:mobilenetv2_140-A", "--plot", "x.gif"], "expected a name that ends in .png"),
        (["pattern:mobilenetv2_140-A", "--exclude", "conv_stem"], "is for MobileNetV2, one chain of 52 layers"),
        (["{folder}/finetuned.safetensors", "--exclude", "blocks.6"], "is of a network of hash"),
        (["pattern:mobilenetv2_140-A", "--device", "moon"], "moon"),
        ([], "the following arguments are required"),
    ],
    ids=str,
)
def test_bad_input_is_exit_2_and_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = _compare(capsys, *(each.format(folder=folder) for each in arguments))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert words in err


def test_solution_that_does_not_fit_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lf.Solution(act_pos=[], merge_pos=[99]).write(folder / "far.json")
    code, _, err = _compare(capsys, f"far={folder / 'far.json'}")
    assert code == 2
    assert "far: merge_pos holds 99; this network has positions 1..52" in err


def test_weights_of_a_real_network_are_measured_as_given() -> None:
    model, x = make_network("cifar:resnet20")
    net = lf.trace_network(model, x)
    solution = lf.Solution(act_pos=net.original_act_pos, merge_pos=range(1, len(net.layers) + 1))
    found = lf.compare_solutions(model, net, {"same": solution}, **_QUICK)
    assert found["same"].macs == net.macs
