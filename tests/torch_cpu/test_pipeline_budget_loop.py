"""Which plan is built next, and what a folder forgets: the loop's decisions without the measuring."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import layerfold as lf
from layerfold.errors import UsageError
from layerfold.pipeline.budget_loop import Budget, _next_index
from layerfold.pipeline.run_folder import RunFolder


@pytest.fixture
def table() -> lf.LatencyTable:
    entries = [lf.LatencyEntry(start=i, end=i + 1, latency_ms=1.0) for i in range(3)]
    return lf.LatencyTable(entries).with_calibration(fixed_ms=1.0, scale=2.0)


def test_slowest_plan_that_fits_comes_next(table: lf.LatencyTable) -> None:
    sums = [1.0, 2.0, 3.0, 4.0]  # predicted 3, 5, 7, 9
    assert _next_index(sums, table, 7.5, -1, 4) == 2
    assert _next_index(sums, table, 7.5, -1, 2) == 1
    assert _next_index(sums, table, 7.5, 2, 4) is None
    assert _next_index(sums, table, 2.0, -1, 4) == 0
    assert _next_index(sums, table, 2.0, -1, 0) is None


def test_search_over_any_frontier_ends_at_the_best_plan_within_the_budget(table: lf.LatencyTable) -> None:
    """Plays the loop against a machine whose latencies rise with the sums but are not what the table says."""
    rng = random.Random(0)
    for _ in range(300):
        sums = sorted(rng.uniform(0.5, 5) for _ in range(rng.randint(1, 12)))
        sums = [value for i, value in enumerate(sums) if i == 0 or value > sums[i - 1] * 1.05]
        true_ms = [(1 + 2 * value) * rng.uniform(0.8, 1.25) for value in sums]
        true_ms = [max(true_ms[: i + 1]) for i in range(len(true_ms))]
        limit_ms = rng.uniform(1, 12)
        passed, failed, tried = -1, len(sums), set()
        while (index := _next_index(sums, table, limit_ms, passed, failed)) is not None:
            assert index not in tried
            tried.add(index)
            if true_ms[index] <= limit_ms:
                passed = index
            else:
                failed = index
        reachable = true_ms[0] <= limit_ms
        assert (passed >= 0) == reachable
        if reachable:
            assert true_ms[passed] <= limit_ms


def test_budget_in_ms() -> None:
    assert Budget(budget_ms=2.0).in_ms(9.0) == 2.0
    assert Budget(speedup=1.5).in_ms(9.0) == 6.0
    assert Budget().is_fastest


def _run(path: Path, steps: str, *, config: dict[str, Any] | None = None, overwrite: bool = False) -> str:
    """Do the named one-letter steps and return which of them were done anew."""
    folder = RunFolder(path, config or {"a": 1}, overwrite=overwrite)
    done = ""
    for name in steps:

        def work(name: str = name) -> dict[str, Any]:
            nonlocal done
            done += name
            folder.file(name).write_text("new")
            return {}

        folder.step(name, [name], work, scratch=[f"{name}.part"])
    return done


def test_step_that_is_missing_a_file_is_done_again_with_all_that_follow(tmp_path: Path) -> None:
    assert _run(tmp_path, "abc") == "abc"
    assert _run(tmp_path, "abc") == ""
    (tmp_path / "b").unlink()
    assert _run(tmp_path, "abc") == "bc"


def test_interruption_while_a_step_is_redone_leaves_no_stale_step(tmp_path: Path) -> None:
    _run(tmp_path, "abc")
    (tmp_path / "b").unlink()
    folder = RunFolder(tmp_path, {"a": 1})
    folder.step("a", ["a"], lambda: {})

    def dies() -> dict[str, Any]:
        folder.file("b").write_text("half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.step("b", ["b"], dies)
    assert not (tmp_path / "c").exists()
    assert _run(tmp_path, "abc") == "bc"


def test_scratch_of_an_interrupted_step_goes_with_what_it_was_made_from(tmp_path: Path) -> None:
    _run(tmp_path, "a")
    folder = RunFolder(tmp_path, {"a": 1})
    folder.step("a", ["a"], lambda: {})

    def dies() -> dict[str, Any]:
        folder.file("b.part").write_text("half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.step("b", ["b"], dies, scratch=["b.part"])
    assert (tmp_path / "b.part").exists(), "an interrupted step goes on from its scratch"
    (tmp_path / "a").unlink()
    _run(tmp_path, "a")
    assert not (tmp_path / "b.part").exists()


def test_overwrite_removes_scratch_and_keeps_other_files(tmp_path: Path) -> None:
    _run(tmp_path, "ab")
    (tmp_path / "b.part").write_text("left")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        _run(tmp_path, "ab", config={"a": 2})
    assert _run(tmp_path, "ab", config={"a": 2}, overwrite=True) == "ab"
    assert not (tmp_path / "b.part").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
