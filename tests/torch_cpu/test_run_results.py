"""Results of steps that ``run.json`` holds: as runs write them they pass, damaged they are one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerfold.errors import UsageError
from layerfold.pipeline.results import check_results

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
}


def test_results_as_runs_write_them_pass() -> None:
    check_results(GOOD, Path("run.json"))
    older = copy.deepcopy(GOOD)
    del older["solve and verify"]["wholes"]
    check_results(older, Path("run.json"))


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
}


@pytest.mark.parametrize("place", DAMAGES)
def test_damaged_results_name_file_step_and_field(place: str) -> None:
    results = copy.deepcopy(GOOD)
    DAMAGES[place](results)
    with pytest.raises(UsageError) as error:
        check_results(results, Path("out/run.json"))
    assert f"out/run.json: steps.{place}" in str(error.value)
    assert str(error.value).endswith("start again in this folder with --overwrite")
    assert "\n" not in str(error.value)
