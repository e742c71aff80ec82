"""Tasks given to other processes: each is done, once unless its worker died, and what goes wrong is one line."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from layerfold.cli import main
from layerfold.errors import (
    ClusterUnavailableError,
    ExecutorError,
    OptionalDependencyError,
    TableError,
    UsageError,
)
from layerfold.executor import Executor, parse_resources
from layerfold.executor.agenda import Agenda
from tests.core.executor_tasks import own_worker, tasks_noted

_TASKS = ["one", "two", "three", "four", "five", "six"]


@pytest.fixture
def make_worker(tmp_path: Path) -> Any:
    return own_worker(tmp_path)


def test_workers_that_are_killed_cost_their_one_task(make_worker: Any, tmp_path: Path) -> None:
    with Executor(workers=2).open(make_worker) as pool:
        answers = dict(pool.map_unordered([_TASKS[:3], _TASKS[3:]]))
        again = dict(pool.map_unordered([["seven"]]))
    assert answers == {task: task.upper() for task in _TASKS}
    assert again == {"seven": "SEVEN"}
    done = Counter(task for task, _ in tasks_noted(tmp_path))
    assert done == {**dict.fromkeys([*_TASKS, "seven"], 1), "two": 2, "five": 2}
    pids = {int(pid) for _, pid in tasks_noted(tmp_path)}
    assert os.getpid() not in pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("killed", "killed: failed 2 times, the last time since its process was ended by signal 9"),
        ("broken", "broken: failed 2 times, the last time since RuntimeError: out of memory"),
        ("unpicklable error", "failed 2 times, the last time since Odd: many words many"),
        ("unpicklable answer", "failed 2 times, the last time since its answer cannot be sent back .*lambda"),
        (
            "answer that raises",
            "failed 2 times, the last time since its answer cannot be sent back .ValueError: not me",
        ),
        ("unreadable answer", "failed 2 times, the last time since its answer cannot be read here .KeyError"),
        ("ends", r"failed 2 times, the last time since the code .* ended its process .sys.exit.0"),
        ("ends at once", "failed 2 times, the last time since its process ended with code 3"),
        ("no memory", "failed 2 times, the last time since MemoryError"),
    ],
)
def test_a_task_that_fails_again_and_again_is_named(
    make_worker: Any, task: str, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Executor(workers=2, retries=1).open(make_worker) as pool, pytest.raises(ExecutorError, match=says) as raised:
        list(pool.map_unordered([[task]]))
    assert len(str(raised.value)) < 600
    assert capfd.readouterr() == ("", "")


def test_an_error_of_a_users_own_class_is_the_nearest_that_every_process_knows(make_worker: Any) -> None:
    with Executor(workers=2).open(make_worker) as pool, pytest.raises(TableError, match=r"^row 4: mine$") as raised:
        list(pool.map_unordered([["own refusal"]]))
    assert type(raised.value) is TableError


def test_what_workers_print_never_reaches_stdout(make_worker: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with Executor(workers=2).open(make_worker) as pool:
        assert dict(pool.map_unordered([["floods"]])) == {"floods": "FLOODS"}
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err) > 2_000_000
    assert "a library prints" in err


def test_an_error_that_a_user_can_cause_comes_back_as_it_is_and_is_not_tried_again(
    make_worker: Any, tmp_path: Path
) -> None:
    with Executor(workers=2).open(make_worker) as pool, pytest.raises(TableError, match=r"^row 3: no number$"):
        list(pool.map_unordered([["refused"]]))
    assert len(tasks_noted(tmp_path)) == 1


def test_workers_that_never_start_are_given_up(make_worker: Any, tmp_path: Path) -> None:
    (tmp_path / "no-start").touch()
    with (
        Executor(workers=2, retries=0).open(make_worker) as pool,
        pytest.raises(ExecutorError, match=r"no worker could be started in 1 tries.*cannot start"),
    ):
        list(pool.map_unordered([["one"]]))


def test_start_that_fails_once_costs_no_task_and_says_nothing(
    make_worker: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one-bad-start").touch()
    with Executor(workers=2, retries=3).open(make_worker) as pool:
        answers = dict(pool.map_unordered([["one", "three"]]))
    assert answers == {"one": "ONE", "three": "THREE"}
    assert sorted(task for task, _ in tasks_noted(tmp_path)) == ["one", "three"]
    assert capfd.readouterr() == ("", "")


def test_workers_that_never_start_are_said_in_one_line(
    make_worker: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no-start").touch()
    with (
        Executor(workers=2, retries=2).open(make_worker) as pool,
        pytest.raises(ExecutorError, match=r"no worker could be started in 3 tries.*cannot start"),
    ):
        list(pool.map_unordered([["one", "three"]]))
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_sent_is_one_line() -> None:
    with (
        pytest.raises(UsageError, match="cannot be sent to another process"),
        Executor(workers=2).open(lambda device: str),
    ):
        pass


def test_one_local_worker_is_this_process(make_worker: Any, tmp_path: Path) -> None:
    with Executor().open(make_worker) as pool:
        assert list(pool.map_unordered([["one"], ["three"]])) == [("one", "ONE"), ("three", "THREE")]
    assert {int(pid) for _, pid in tasks_noted(tmp_path)} == {os.getpid()}


def test_runs_stay_together_and_the_last_one_is_shared() -> None:
    agenda = Agenda([[1, 2], [], [3, 4, 5, 6, 7]])
    assert [agenda.next_for("a"), agenda.next_for("b"), agenda.next_for("b"), agenda.next_for("a")] == [1, 3, 4, 2]
    assert agenda.next_for("a") == 6  # of 5, 6, 7 the later half
    agenda.give_back("b", 4)
    assert [agenda.next_for("a"), len(agenda)] == [7, 2]
    assert [agenda.next_for("c"), agenda.next_for("a"), len(agenda)] == [4, 5, 0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "rey"}, "nearest: ray"),
        ({"workers": 0}, "workers=0: must be at least 1"),
        ({"kind": "ray", "devices": ("cuda:0",)}, "with executor='ray' say"),
        ({"address": "head:6379"}, "use executor='ray'"),
        ({"devices": ("cuda:0",), "workers": 2}, "leave workers out"),
    ],
)
def test_executors_that_make_no_sense_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Executor(**arguments)


@pytest.mark.parametrize("text", ["", "GPU", "GPU:0", "GPU:x", ":1", "GPU:1,", "GPU:nan"])
def test_resources_are_names_with_amounts(text: str) -> None:
    assert parse_resources("GPU:1, h200:0.5") == {"GPU": 1.0, "h200": 0.5}
    with pytest.raises(UsageError, match="names with amounts above 0"):
        parse_resources(text)


def test_absent_ray_says_how_to_install_it(make_worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(OptionalDependencyError, match=r"pip install 'layerfold\[ray\]'") as caught,
        Executor(kind="ray").open(make_worker),
    ):
        pass
    assert caught.value.exit_code == 4


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_cluster_that_does_not_answer_is_one_line_within_seconds(make_worker: Any) -> None:
    with socket.socket() as closed:  # bound and not listening: nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with (
            pytest.raises(ClusterUnavailableError, match="no Ray cluster answers there") as caught,
            Executor(kind="ray", address=address).open(make_worker),
        ):
            pass
    assert caught.value.exit_code == 4
    with (
        pytest.raises(UsageError, match="give host:port"),
        Executor(kind="ray", address="ray://head:10001").open(make_worker),
    ):
        pass


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--executor", "rey"], "invalid choice"),
        (["--ray-resources", "GPU:1"], "goes with --executor ray"),
        (["--executor", "ray", "--ray-resources", "GPU"], "names with amounts"),
        (["--workers", "2", "--devices", "cuda:0"], "not allowed with"),
        (["--devices", "cuda:0,,"], "names with commas"),
    ],
)
def test_bad_arguments_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    out = str(tmp_path / "importance.csv")
    assert main(["importance", "timm:mobilenetv2_035", "--data", "mnist5k", "-o", out, *more]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
