"""Tasks given to a Ray cluster of this machine."""

from __future__ import annotations

import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from layerfold.errors import ClusterUnavailableError, TableError
from layerfold.executor import Executor
from tests.core.executor_tasks import own_worker, tasks_noted

_TASKS = ["one", "two", "three", "four", "five", "six"]


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_cluster_does_every_task_whoever_dies_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_worker, mine = own_worker(tmp_path), f"layerfold-ray-{os.getpid()}-"
    # The cluster is up for all that is to be seen: to start one takes seconds.
    with Executor(kind="ray", workers=2).open(make_worker) as pool:
        answers = dict(pool.map_unordered([_TASKS[:3], _TASKS[3:]]))
        with pytest.raises(TableError, match=r"^row 3: no number$"):
            list(pool.map_unordered([["refused"]]))
        lacking = Executor(kind="ray", resources={"GPU": 1, "h200": 1})
        with (
            pytest.raises(ClusterUnavailableError, match=r"GPU:1,h200:1: no node .* has CPU:\d+;"),
            lacking.open(make_worker),
        ):
            pass
        assert _command_lines_with(mine)
        assert dict(pool.map_unordered([["eight"]])) == {"eight": "EIGHT"}  # it was not the other's to end
    assert answers == {task: task.upper() for task in _TASKS}
    done = Counter(task for task, _ in tasks_noted(tmp_path))
    assert done == {**dict.fromkeys([*_TASKS, "refused", "eight"], 1), "two": 2, "five": 2}
    assert not list(Path("/tmp").glob(f"{mine}*"))
    assert not _command_lines_with(mine)
    assert capfd.readouterr() == ("", "")


def _command_lines_with(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has just ended
        if text in line:
            found.append(line)
    return found
