"""Outcomes of steps that ``run.json`` holds: as runs write them they pass, damaged they are one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from layerfold.errors import UsageError
from layerfold.pipeline.outcomes import (
    Benched,
    Estimated,
    Exported,
    Finetuned,
    Merged,
    Profiled,
    Scored,
    Solved,
    StepOutcome,
    Traced,
)

NETWORK = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "is_settled": True}
GOOD: dict[str, dict[str, Any]] = {
    "bench": {
        "is_within_budget": True,
        "attempts": 1,
        "provenance": {"device": "cpu", "conditions": {"warnings": ["hot"]}},
        "networks": [{"name": "original", **NETWORK}, {"name": "compressed", **NETWORK}],
    },
    "evaluate": {
        "original": {"accuracy_pct": None, "agreement_pct": None},
        "compressed": {"accuracy_pct": 97, "agreement_pct": 99.5},
    },
    "solve and verify": {
        "rounds": [
            {
                "predicted_ms": 1.0,
                "measured_ms": 1.0,
                "original_ms": 2.0,
                "low_ms": 0.9,
                "high_ms": 1.1,
                "ratio": 0.5,
                "importance": -0.1,
                "is_within": True,
            }
        ],
        "frontier": [[1.0, -0.5], [2, 0]],
        "wholes": {"score": None, "taken": []},
    },
    "export": {"check": {"max_rel": 1e-6, "max_abs": 0.1}, "engine": None},
    "trace": {"layers": 3, "chains": 1, "residuals": 0},
    "profile": {"candidates": 4},
    "importance": {"entries": 3, "left_out": 1},
    "finetune": {
        "history": [
            {
                "epoch": 1,
                "steps": 9,
                "train_loss": 0.5,
                "holdout_accuracy_pct": 90.0,
                "holdout_loss": 0.4,
                "learning_rate": 0.01,
                "seconds": 2,
            }
        ],
        "best_epoch": 1,
        "kept_epoch": 1,
        "options": {"epochs": 1, "milestones": []},
    },
    "merge": {"max_difference": 1e-7},
}


KINDS: dict[str, type[StepOutcome]] = {
    "bench": Benched,
    "evaluate": Scored,
    "solve and verify": Solved,
    "export": Exported,
    "trace": Traced,
    "profile": Profiled,
    "importance": Estimated,
    "finetune": Finetuned,
    "merge": Merged,
}


def read(results: dict[str, dict[str, Any]]) -> dict[str, StepOutcome]:
    return {
        name: KINDS[name].from_json(result, source=f"out/run.json: steps.{name}.result")
        for name, result in results.items()
    }


def test_results_as_runs_write_them_pass() -> None:
    for name, outcome in read(GOOD).items():
        again = KINDS[name].from_json(outcome.to_json(), source="again")
        assert again == outcome, "what is written is read back as it was"
    older = copy.deepcopy(GOOD)
    del older["solve and verify"]["wholes"]
    read(older)


def test_names_in_the_file_stay_what_they_were() -> None:
    """Runs of other versions go on with these files, and programs read them."""
    bench = read(GOOD)["bench"].to_json()
    assert list(bench) == ["is_within_budget", "attempts", "networks", "provenance"]
    (network, _) = bench["networks"]  # type: ignore[misc, union-attr]
    assert list(network) == [
        "name",
        "median_ms",
        "low_ms",
        "high_ms",
        "spread_ms",
        "ratio",
        "ratio_low",
        "ratio_high",
        "runs",
        "is_settled",
        "contended",
        "speedup",
    ]
    solved = read(GOOD)["solve and verify"].to_json()
    assert list(solved) == ["rounds", "frontier", "wholes"]
    assert solved["wholes"] == {"score": None, "taken": []}, "finalists only where there were some"
    assert list(read(GOOD)["export"].to_json()) == ["onnx_path", "check", "engine", "skipped"]
    assert list(Finetuned().to_json()) == [
        "history",
        "best_epoch",
        "kept_epoch",
        "steps",
        "resumed_from_step",
        "seconds",
        "options",
    ]


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bench.result: networks": lambda r: r["bench"].pop("networks"),
    "bench.result: networks.1.median_ms": lambda r: r["bench"]["networks"][1].update(median_ms=0),
    "bench.result: networks.0.is_settled": lambda r: r["bench"]["networks"][0].update(is_settled="yes"),
    "bench.result: attempts": lambda r: r["bench"].update(attempts=10**30),
    "bench.result: provenance.conditions.warnings.0": lambda r: r["bench"].update(
        provenance={"conditions": {"warnings": [1]}}
    ),
    "bench.result.networks: expected original and compressed": lambda r: r["bench"]["networks"][0].update(name="x"),
    "evaluate.result: compressed.accuracy_pct": lambda r: r["evaluate"]["compressed"].update(accuracy_pct=101.0),
    "evaluate.result: original": lambda r: r["evaluate"].update(original=None),
    "solve and verify.result: rounds": lambda r: r["solve and verify"].update(rounds=[]),
    "solve and verify.result: rounds.0.ratio": lambda r: r["solve and verify"]["rounds"][0].update(ratio=0),
    "solve and verify.result: rounds.0.measured_ms": lambda r: r["solve and verify"]["rounds"][0].update(
        measured_ms=float("nan")
    ),
    "solve and verify.result: frontier.0": lambda r: r["solve and verify"].update(frontier=[[1.0]]),
    "export.result: check": lambda r: r["export"].update(check=[]),
    "trace.result: layers": lambda r: r["trace"].update(layers=-1),
    "profile.result: candidates": lambda r: r["profile"].pop("candidates"),
    "importance.result: left_out": lambda r: r["importance"].update(left_out=0.5),
    "finetune.result: history.0.epoch": lambda r: r["finetune"]["history"][0].update(epoch="1"),
    "merge.result: max_difference": lambda r: r["merge"].update(max_difference=float("nan")),
}


@pytest.mark.parametrize("place", DAMAGES)
def test_damaged_results_name_file_step_and_field(place: str) -> None:
    results = copy.deepcopy(GOOD)
    DAMAGES[place](results)
    with pytest.raises(UsageError) as error:
        read(results)
    assert f"out/run.json: steps.{place}" in str(error.value)
    assert str(error.value).endswith("start again in this folder with --overwrite")
    assert "\n" not in str(error.value)
