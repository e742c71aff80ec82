"""Solutions by hand, as JSON, and as published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from layerfold.errors import SolutionError
from layerfold.solver import Solution, SolutionSegment

FULL = Solution(
    act_pos=(1, 3),
    merge_pos=(1, 2, 3),
    kept_layers=(1, 2),
    model="timm:net",
    network_hash="ab",
    budget_ms=2.0,
    predicted_ms=1.5,
    measured_ms=1.6,
    importance=-0.5,
    status="within",
    gap=0.01,
    costs={"params": 12.0},
    segments=(
        SolutionSegment(start=0, end=1, plan="keep", latency_ms=0.5),
        SolutionSegment(start=1, end=3, plan="drop", kernel="3x3 dw"),
    ),
    table_hashes={"latency": "cd"},
    version="0.1",
)


def test_positions_are_sorted_and_unique() -> None:
    solution = Solution(act_pos=[3, 1, 3], merge_pos=[4, 3, 1])  # type: ignore[arg-type]
    assert (solution.act_pos, solution.merge_pos) == ((1, 3), (1, 3, 4))


def test_activation_outside_the_merge_positions_is_refused() -> None:
    with pytest.raises(SolutionError, match=r"act_pos=\[2\]: not in merge_pos"):
        Solution(act_pos=[1, 2], merge_pos=[1, 3])  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", ["12", 5, [-1], [1.5], [True], ["1"], [None], {"1": 2}, [10**9]])
def test_positions_must_be_whole_numbers_above_zero(positions: object) -> None:
    with pytest.raises(SolutionError):
        Solution(act_pos=[], merge_pos=positions)  # type: ignore[arg-type]


def test_the_input_is_no_position() -> None:
    assert Solution(act_pos=[0, 2], merge_pos=[0, 1, 2]) == Solution(act_pos=(2,), merge_pos=(1, 2))  # type: ignore[arg-type]


def test_solution_survives_a_round_trip(tmp_path: Path) -> None:
    FULL.write(tmp_path / "deep" / "solution.json")
    assert Solution.read(tmp_path / "deep" / "solution.json") == FULL


def test_file_has_the_agreed_keys(tmp_path: Path) -> None:
    FULL.write(tmp_path / "solution.json")
    data = json.loads((tmp_path / "solution.json").read_text())
    assert {
        "schema",
        "model",
        "act_pos",
        "merge_pos",
        "budget_ms",
        "predicted_ms",
        "measured_ms",
        "importance",
        "segments",
        "tables",
        "version",
    } <= set(data)
    assert data["segments"][0] == {"start": 0, "end": 1, "plan": "keep", "latency_ms": 0.5}
    assert data["segments"][1]["kernel"] == "3x3 dw"
    assert data["kept_layers"] == [1, 2]


def test_without_kept_layers_every_layer_stays(tmp_path: Path) -> None:
    Solution(act_pos=(), merge_pos=(2,)).write(tmp_path / "solution.json")
    assert json.loads((tmp_path / "solution.json").read_text())["kept_layers"] is None
    assert Solution.read(tmp_path / "solution.json").kept_layers is None
    assert Solution(act_pos=(), merge_pos=(2,), kept_layers=[2, 1, 2]).kept_layers == (1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        '{"act_pos": [], "merge_pos": [2], "kept_layers": "12"}',
        '{"act_pos": [], "merge_pos": [2], "kept_layers": [1.5]}',
        '{"act_pos": [], "merge_pos": [2], "kept_layers": [-1]}',
        '{"act_pos": [], "merge_pos": [2], "segments": [{"start": 0, "end": 2, "kernel": "three"}]}',
    ],
)
def test_broken_drops_are_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "solution.json").write_text(content)
    with pytest.raises(SolutionError, match=r"solution.json: (kept_layers|segments)[^\n]*$"):
        Solution.read(tmp_path / "solution.json")


def test_two_lists_alone_make_a_solution(tmp_path: Path) -> None:
    path = tmp_path / "solution.json"
    path.write_text('{"act_pos": [2], "merge_pos": [2, 4]}')
    assert Solution.read(path) == Solution(act_pos=(2,), merge_pos=(2, 4))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "nonsense",
        '{"act_pos": []}',
        '{"act_pos": [1], "merge_pos": [2]}',
        '{"act_pos": "12", "merge_pos": [1, 2]}',
        '{"act_pos": [], "merge_pos": [1e3]}',
        '{"schema": 99, "act_pos": [], "merge_pos": []}',
        '{"act_pos": [], "merge_pos": [1], "budget_ms": "x"}',
        '{"act_pos": [], "merge_pos": [1], "predicted_ms": NaN}',
        '{"act_pos": [], "merge_pos": [1], "segments": [3]}',
        '{"act_pos": [], "merge_pos": [1], "segments": [{"start": 3, "end": 1}]}',
        '{"act_pos": [], "merge_pos": [1], "tables": []}',
        '{"act_pos": [], "merge_pos": [1], "model": 3}',
        "[" * 100_000,
    ],
    ids=range(16),
)
def test_bad_solution_file_is_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "solution.json"
    path.write_text(text)
    with pytest.raises(SolutionError, match=r"solution\.json") as caught:
        Solution.read(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(SolutionError, match=r"(no such file|is a folder)"):
            Solution.read(path)


def test_positions_may_be_arrays() -> None:
    found = Solution.from_json(
        {"act_pos": np.array([1]), "merge_pos": np.array([1, 3]), "predicted_ms": np.float32(0.5)}
    )
    assert (found.act_pos, found.merge_pos, found.predicted_ms) == ((1,), (1, 3), 0.5)
