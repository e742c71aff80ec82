"""Published ``checkpoint.pth`` files: read, written, and refused where they are not what they claim."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251 - to write the files that must be refused
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from layerfold.cli import main
from layerfold.errors import SolutionError
from layerfold.solver import Solution

MODEL = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
"""


class _Touch:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


def with_code(path: Path) -> None:
    torch.save({"act_pos": [1], "merge_pos": _Touch(path.with_name("ran"))}, path)


def plain_pickle_with_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"act_pos": [1], "merge_pos": _Touch(path.with_name("ran"))}))


def cut_short(path: Path) -> None:
    torch.save({"act_pos": [1], "merge_pos": [1, 2]}, path)
    path.write_bytes(path.read_bytes()[:200])


def zip_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


def saves(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


BAD = {
    "holds code": (with_code, "safe to load"),
    "a plain pickle that holds code": (plain_pickle_with_code, "safe to load"),
    "cut short": (cut_short, "safe to load"),
    "a zip of something else": (zip_of_something_else, "safe to load"),
    "empty": (lambda path: path.write_bytes(b""), "safe to load"),
    "text": (lambda path: path.write_text("act_pos = [1]"), "safe to load"),
    "a list": (saves([1, 2]), "holds a list"),
    "a tensor": (saves(torch.zeros(3)), "holds a Tensor"),
    "without merge_pos": (saves({"act_pos": [1]}), "no 'merge_pos'"),
    "without act_pos": (saves({"merge_pos": [1]}), "no 'act_pos'"),
    "a weights file": (saves({"0.weight": torch.zeros(1)}), "no 'act_pos'"),
    "positions as text": (saves({"act_pos": "1", "merge_pos": [1]}), "expected a list of positions"),
    "positions with fractions": (saves({"act_pos": [1.5], "merge_pos": [1]}), "is no position"),
    "positions as a float tensor": (saves({"act_pos": [], "merge_pos": torch.tensor([1.5])}), "is no position"),
    "negative positions": (saves({"act_pos": [], "merge_pos": [-3]}), "is no position"),
    "activation where nothing stops": (saves({"act_pos": [1], "merge_pos": [2]}), "not in merge_pos"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    make, says = BAD[name]
    make(tmp_path / "checkpoint.pth")
    with pytest.raises(SolutionError, match=says) as caught:
        Solution.read(tmp_path / "checkpoint.pth")
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pth"], "no code of the file has run"


@pytest.mark.parametrize(
    ("make", "says"),
    [(with_code, "safe to load"), (saves({"act_pos": [], "merge_pos": [50]}), "positions 1..3")],
    ids=["holds code", "another network"],
)
def test_command_refuses_a_bad_checkpoint_and_writes_nothing(
    make: Callable[[Path], None],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "checkpoint.pth")
    (tmp_path / "model.py").write_text(MODEL)
    before = sorted(each.name for each in tmp_path.iterdir())
    command = ["inspect", "model.py:small", "--input", "3x8x8", "--solution", "checkpoint.pth", "--svg", "net.svg"]
    code = main(command)
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    after = sorted(each.name for each in tmp_path.iterdir() if each.name != "__pycache__")
    assert after == before, "nothing is written, and no code of the file has run"


def test_solution_for_another_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    Solution(act_pos=(1,), merge_pos=(1, 3), network_hash="0123").write("solution.json")
    assert main(["inspect", "model.py:small", "--input", "3x8x8", "--solution", "solution.json"]) == 2
    assert "0123" in capsys.readouterr().err


@pytest.mark.parametrize("as_tensor", [False, True])
def test_published_checkpoint_is_read(tmp_path: Path, as_tensor: bool) -> None:
    # Published files name the input, 0, among the positions, and hold weights and more beside them.
    positions = {"act_pos": [0, 2, 5], "merge_pos": [0, 1, 2, 5]}
    if as_tensor:
        positions = {name: torch.tensor(each) for name, each in positions.items()}
    torch.save({**positions, "state_dict": {"w": torch.zeros(2)}, "epoch": 3, "arch": "x"}, tmp_path / "checkpoint.pth")
    assert Solution.read(tmp_path / "checkpoint.pth") == Solution(act_pos=(2, 5), merge_pos=(1, 2, 5))


def test_written_checkpoint_holds_two_lists_and_loads_again(tmp_path: Path) -> None:
    solution = Solution(act_pos=(2,), merge_pos=(1, 2, 4))
    solution.write_checkpoint(tmp_path / "new" / "checkpoint.pth")
    data = torch.load(tmp_path / "new" / "checkpoint.pth", weights_only=True)
    assert data == {"act_pos": [2], "merge_pos": [1, 2, 4]}
    assert Solution.read(tmp_path / "new" / "checkpoint.pth") == solution


def test_solve_writes_a_published_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("time.csv").write_text("id,st,end,time,stdev\n0,0,1,1,0\n1,1,2,1,0\n2,0,2,1.5,0\n")
    Path("imp.csv").write_text("id,st,end,st_act,end_act,val_acc\n0,0,1,1,1,0\n1,1,2,1,1,0\n2,0,2,1,1,-1\n")
    command = ["solve", "--time-path", "time.csv", "--imp-path", "imp.csv", "--budget", "1.6"]
    assert main([*command, "--pth", "out.pth", "-o", "s.json"]) == 0
    assert Solution.read("out.pth") == Solution(act_pos=(2,), merge_pos=(2,))
    assert json.loads(Path("s.json").read_text())["merge_pos"] == [2]


def test_checkpoint_by_content_not_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"act_pos": [1], "merge_pos": [1]}, buffer)
    (tmp_path / "solution").write_bytes(buffer.getvalue())
    assert Solution.read(tmp_path / "solution") == Solution(act_pos=(1,), merge_pos=(1,))
    (tmp_path / "other").write_text("x")
    with pytest.raises(SolutionError, match="is no JSON"):
        Solution.read(tmp_path / "other")


def test_checkpoint_of_the_published_solver_with_numbers_of_todays_numpy_loads(shared_path: Path) -> None:
    solution = Solution.read(shared_path / "cases" / "published_checkpoint.pth")
    assert len(solution.act_pos) == len(solution.merge_pos) == 39
    assert (solution.merge_pos[0], solution.merge_pos[-1]) == (1, 50)


@pytest.mark.parametrize(
    "positions",
    [
        [np.int64(2), np.int32(1)],
        np.array([1, 2]),
        np.array([2, 1], dtype=">u2"),
        frozenset({1, 2}),
        (1, 2),
        [torch.tensor(1), torch.tensor(2)],
        {np.int8(1), 2},
    ],
)
def test_positions_may_be_numbers_and_arrays_of_numpy(tmp_path: Path, positions: object) -> None:
    torch.save({"act_pos": [], "merge_pos": positions, "sum": np.float64(1)}, tmp_path / "checkpoint.pth")
    assert Solution.read(tmp_path / "checkpoint.pth").merge_pos == (1, 2)


@pytest.mark.parametrize(
    "positions",
    [
        [10**600],
        [-(10**200)],
        [[1]],
        np.array([[1]]),
        np.array([1.5]),
        np.array([None]),
        [np.bool_(True)],
        [None],
        torch.zeros(1, dtype=torch.int64).expand(10**12),
        torch.tensor([1]).to_sparse(),
        torch.zeros(2, device="meta"),
        5,
        {"a": 1},
        b"12",
        [torch.tensor([1, 2])],
        ["1"],
        1j,
    ],
)
def test_positions_that_are_none_are_one_bounded_line(tmp_path: Path, positions: object) -> None:
    torch.save({"act_pos": [], "merge_pos": positions}, tmp_path / "checkpoint.pth")
    with pytest.raises(SolutionError, match=r"^[^\n]*merge_pos[^\n]*$") as caught:
        Solution.read(tmp_path / "checkpoint.pth")
    assert len(str(caught.value)) < len(str(tmp_path)) + 250
