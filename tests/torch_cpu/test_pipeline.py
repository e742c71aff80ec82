"""The whole run on a small real network, in ONNX Runtime on this CPU."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

import layerfold as lf
from layerfold.budget import Budget
from layerfold.data import ImageData
from layerfold.errors import InfeasibleBudgetError, UsageError
from layerfold.importance import FinalistScores
from layerfold.models import LoadedModel
from layerfold.pipeline import CompressOptions, CompressResult, budget_loop, plan_scores
from layerfold.pipeline.run_config import completed
from layerfold.pipeline.run_folder import RunFolder

FILES = (
    "network.json",
    "latency.csv",
    "latency.csv.json",
    "importance.csv",
    "importance.csv.json",
    "solution.json",
    "frontier.csv",
    "verification.json",
    "finetuned.safetensors",
    "finetuned.safetensors.json",
    "merged.safetensors",
    "merged.safetensors.json",
    "original.onnx",
    "model.onnx",
    "scores.json",
    "bench.json",
    "frontier.png",
    "network.svg",
    "report.html",
    "run.json",
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return lf.load_model("timm:tf_mobilenetv3_small_minimal_100", num_classes=10, in_channels=1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Some of the images: what is tested is what the steps hand on, not how well a network learns."""
    whole = lf.open_data("mnist5k", input_shape=(1, 40, 40), mean=(0.5,), std=(0.5,))
    counts = {"train": 640, "holdout": 128, "test": 256}
    splits = {name: Subset(whole.split(name), range(count)) for name, count in counts.items()}
    return ImageData(name=whole.name, num_classes=10, input_shape=whole.input_shape, **splits)


def options(speedup: float) -> CompressOptions:
    return CompressOptions(
        speedup=speedup,
        finetune_epochs=1,
        batch_size=32,
        importance_images=64,
        importance_steps=1,
        importance_score="loss",
        formats=("onnx",),
    )


@pytest.fixture(scope="module")
def finished(loaded: LoadedModel, data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> CompressResult:
    out = tmp_path_factory.mktemp("run") / "out"
    return lf.compress_network(loaded, data, out=out, options=options(1.1), progress=False)


def test_every_step_leaves_its_files(finished: CompressResult) -> None:
    missing = [name for name in FILES if not (finished.out / name).exists()]
    assert missing == []
    assert not list(finished.out.glob("importance.journal*"))


def test_files_keep_the_budget_when_they_are_measured_again(finished: CompressResult) -> None:
    assert finished.is_budget_met
    files = {name: finished.out / f"{name}.onnx" for name in ("original", "model")}
    again = lf.benchmark_networks(files, cap_s=3)
    # The lower end: another measurement on a busy machine may be unlucky, but must not rule the claim out.
    assert again["model"].ratio_low <= 1 / 1.1
    chosen = json.loads((finished.out / "verification.json").read_text())["chosen"]
    assert chosen["is_within_budget"]
    assert chosen["ratio_high"] <= 1 / 1.1


def test_plan_is_no_worse_a_whole_than_the_one_of_highest_importance(finished: CompressResult) -> None:
    wholes = json.loads((finished.out / "verification.json").read_text())["wholes"]
    assert wholes["score"] == "loss"
    assert wholes["taken"] == sorted(set(wholes["taken"]))
    assert len(wholes["taken"]) >= 1
    page = (finished.out / "report.html").read_text()
    assert ("As whole networks, before any training" in page) == (len(wholes["taken"]) > 1)


@pytest.mark.usefixtures("measured_in_a_hurry")
def test_finalists_are_trained_and_the_best_is_taken(
    loaded: LoadedModel, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Restless:
        """Likes every plan better than the one before, so that the loop goes on to others."""

        score = "loss"

        def __init__(self, *_: object, **__: object) -> None:
            self.asked = 0

        def __call__(self, _: lf.Solution) -> float:
            self.asked += 1
            return float(self.asked)

    def keep(loop: Any, solution: lf.Solution) -> bool:
        loop.verify(solution)
        return True

    monkeypatch.setattr(plan_scores, "WholeScores", Restless)
    # A busy machine must not decide whether there are finalists.
    monkeypatch.setattr(Budget, "is_kept_by", lambda *_: True)
    monkeypatch.setattr(budget_loop._Loop, "is_kept_by", keep)
    asked = replace(options(1.05), importance_method="recalibrate", whole_plans=8, finalist_steps=2)
    found = lf.compress_network(loaded, data, out=tmp_path / "out", options=asked, progress=False)
    wholes = json.loads((found.out / "verification.json").read_text())["wholes"]
    assert len(wholes["finalists"]) == min(len(wholes["taken"]), 4) > 1
    assert wholes["chosen"] == wholes["finalists"].index(max(wholes["finalists"]))
    assert wholes["finalist_steps"] == 2
    model = loaded.module.eval()
    net = lf.trace_network(model, torch.zeros(1, *data.input_shape))
    score = FinalistScores(model, net, data, lf.FinetuneOptions(steps=2, batch_size=32), holdout_images=64)
    assert score(found.solution) == pytest.approx(max(wholes["finalists"]), abs=1e-5)
    assert "Finetuned for 2 steps each" in (found.out / "report.html").read_text()


LEFT_OUT: dict[str, Any] = {
    "backend_device": None,
    "precision": None,
    "layout": None,
    "backend_options": {},
    "drop_layers": False,
    "whole_plans": 24,
    "finalist_steps": None,
    "train_device": "cpu",
    "unfreeze": False,
    "keep_frozen": False,
}
"""What versions up to 0.1 did not write where it was the default."""


def test_every_setting_is_written_down_as_it_takes_effect(finished: CompressResult) -> None:
    config = json.loads((finished.out / "run.json").read_text())["config"]
    assert {"backend_device": "cpu", "precision": "float32", "layout": "nchw", "whole_plans": 24}.items() <= (
        config.items()
    )
    found = tuple(config[name] for name in ("importance_method", "learning_rate", "finalist_steps"))
    assert found == ("shared", 0.0125, 0)
    assert config.keys() >= {each.name for each in fields(CompressOptions)} - {"device"}


def test_file_that_does_not_say_stands_for_the_defaults_of_its_version(data: ImageData) -> None:
    """The numbers are written out here, too: a default that changes later must not change what an old file means."""
    now = options(1.1).settled(data).as_config() | {"finalist_steps": 0}
    old = {name: value for name, value in now.items() if name not in LEFT_OUT}
    old |= {"learning_rate": None, "importance_method": "auto"}
    assert completed(old, data) == now
    longer = old | {"finetune_epochs": 24, "batch_size": 64}
    known = completed(longer, data)
    assert (known["finalist_steps"], known["learning_rate"], known["importance_method"]) == (60, 0.025, "shared")
    unlabelled = completed(old, replace(data, is_labelled=False))
    assert (unlabelled["finalist_steps"], unlabelled["importance_method"]) == (0, "recalibrate")
    assert completed(old | {"finalist_steps": 60}, replace(data, is_labelled=False))["finalist_steps"] == 0, "none were"
    said = {"precision": "float16", "whole_plans": 3, "finalist_steps": 7, "learning_rate": 0.5}
    assert said.items() <= completed(old | said, data).items(), "what a file says counts"


def test_run_of_a_version_that_left_settings_out_goes_on(tmp_path: Path, data: ImageData) -> None:
    now = options(1.1).settled(data).as_config() | {"finalist_steps": 0}
    old = {name: value for name, value in now.items() if name not in LEFT_OUT} | {"learning_rate": None}
    RunFolder(tmp_path, old).step("profile", [], lambda: {})
    RunFolder(tmp_path, now, complete=lambda stored: completed(stored, data))
    assert json.loads((tmp_path / "run.json").read_text())["config"] == json.loads(json.dumps(now))


def test_default_that_has_changed_since_does_not_change_a_run_silently(tmp_path: Path, data: ImageData) -> None:
    now = options(1.1).settled(data).as_config() | {"finalist_steps": 0}
    old = {name: value for name, value in now.items() if name not in LEFT_OUT}
    RunFolder(tmp_path, old).step("profile", [], lambda: {})
    with pytest.raises(UsageError, match=r"whole_plans was 24, now 30.*--overwrite"):
        RunFolder(tmp_path, now | {"whole_plans": 30}, complete=lambda stored: completed(stored, data))


def test_report_shows_every_latency_in_the_unit_of_the_last_measurement(finished: CompressResult) -> None:
    """Each step measured at another moment: what a person compares is a share of the original at that moment."""
    report, table = finished.report, lf.LatencyTable.read(finished.out / "latency.csv")
    original, compressed = report.rows
    assert original.latency_ms is not None
    assert report.budget_ms == pytest.approx(original.latency_ms / 1.1)
    assert original.predicted_ms is None
    found = json.loads((finished.out / "verification.json").read_text())["rounds"]
    predicted_beside_ms = [table.original_ms, *(each["original_ms"] for each in found[:-1])]
    for row, each, beside_ms in zip(report.rounds, found, predicted_beside_ms, strict=True):
        shares = [value / original.latency_ms for value in (row.predicted_ms, row.measured_ms, row.low_ms, row.high_ms)]
        assert shares == pytest.approx(
            [
                each["predicted_ms"] / beside_ms,
                *(each[name] / each["original_ms"] for name in ("measured_ms", "low_ms", "high_ms")),
            ]
        )
    assert compressed.predicted_ms in [row.predicted_ms for row in report.rounds]
    merged_ms = sum(each.before_ms or 0.0 for each in report.segments)
    layers_ms = sum(table.at((i, i + 1)).latency_ms for each in report.segments for i in range(each.start, each.end))
    assert merged_ms / original.latency_ms == pytest.approx(layers_ms * table.provenance.scale / table.original_ms)


def test_onnx_file_computes_what_the_merged_network_does(finished: CompressResult) -> None:
    import onnxruntime

    images = torch.randn(1, 1, 40, 40)
    session = onnxruntime.InferenceSession(str(finished.out / "model.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    with torch.no_grad():
        expected = finished.merged(images).numpy()
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_second_run_does_nothing_twice(finished: CompressResult, loaded: LoadedModel, data: ImageData) -> None:
    manifest = (finished.out / "run.json").read_text()
    again = lf.compress_network(loaded, data, out=finished.out, options=options(1.1), progress=False)
    assert all(step.is_resumed for step in again.report.steps)
    assert (finished.out / "run.json").read_text() == manifest
    assert again.solution == finished.solution


@pytest.mark.usefixtures("measured_in_a_hurry")
def test_run_goes_on_from_the_step_that_is_missing(
    finished: CompressResult, loaded: LoadedModel, data: ImageData
) -> None:
    (finished.out / "merged.safetensors").unlink()
    again = lf.compress_network(loaded, data, out=finished.out, options=options(1.1), progress=False)
    resumed = {step.name: step.is_resumed for step in again.report.steps}
    assert resumed["profile"]
    assert resumed["finetune"]
    assert not resumed["merge"]
    assert not resumed["bench"]


def test_folder_of_another_run_is_refused(finished: CompressResult, loaded: LoadedModel, data: ImageData) -> None:
    with pytest.raises(UsageError, match=r"speedup was 1\.1, now 1\.2.*--overwrite"):
        lf.compress_network(loaded, data, out=finished.out, options=options(1.2), progress=False)


def test_folder_with_foreign_files_is_refused_even_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="files that no run wrote"):
        RunFolder(tmp_path, {"a": 1}, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.usefixtures("measured_in_a_hurry")
def test_unreachable_budget_names_the_least_before_anything_is_trained(
    loaded: LoadedModel, data: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(
        InfeasibleBudgetError, match=r"budget 20x .*(no plan meets it|no merging changes that)"
    ) as caught:
        lf.compress_network(loaded, data, out=tmp_path / "out", options=options(20), progress=False)
    assert caught.value.least_ms > caught.value.budget_ms
    assert not (tmp_path / "out/importance.csv").exists()


@pytest.mark.usefixtures("measured_in_a_hurry")
def test_without_finetuning_importances_expect_none(loaded: LoadedModel, data: ImageData, tmp_path: Path) -> None:
    chosen = CompressOptions(
        fastest=True,
        finetune_epochs=0,
        batch_size=32,
        importance_images=64,
        formats=("onnx",),
        exclude=tuple(f"blocks.{number}" for number in range(2, 6)),
    )
    lf.compress_network(loaded, data, out=tmp_path / "out", options=chosen, progress=False)
    sidecar = json.loads((tmp_path / "out/importance.csv.json").read_text())
    assert sidecar["options"]["method"] == "recalibrate"
    page = (tmp_path / "out/report.html").read_text()
    assert "By the importance table (method recalibrate)" in page
    assert "Nothing was finetuned" in page
    wholes = json.loads((tmp_path / "out/verification.json").read_text())["wholes"]
    assert wholes == {"score": None, "taken": []}, "the fastest plan is what it is"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of the three"),
        ({"budget_ms": 1.0, "speedup": 2.0}, "give one of the three"),
        ({"budget_ms": 0.0}, "must be above 0"),
        ({"speedup": float("nan")}, "must be above 0"),
        ({"speedup": 1.3, "importance_score": "acuracy"}, "nearest: accuracy"),
        ({"speedup": 1.3, "formats": ("onx",)}, "nearest: onnx"),
        ({"speedup": 1.3, "whole_plans": -1}, "whole_plans=-1: must be at least 0"),
        ({"speedup": 1.3, "threads": 0}, "threads=0: must be at least 1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressOptions(**settings)  # type: ignore[arg-type]
