"""Advice that an error gives is true: the same command line, changed as the line says, works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfold.cli import main

_FILES = {
    "time.csv": "id,st,end,time,stdev\n0,0,1,1.0371,0.01\n1,1,2,1.0,0.01\n2,2,3,1.1,0.01\n3,0,2,1.53177,0.01\n"
    "4,1,3,1.6,0.01\n",
    "imp.csv": "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc\n0,0,1,1,1,,,,0\n1,1,2,1,1,,,,0\n"
    "2,2,3,1,1,,,,0\n3,0,2,1,1,,,,-2\n4,1,3,1,1,,,,-1\n",
    "first.json": '{"act_pos": [3], "merge_pos": [2, 3]}',
    "there.json": "{}",
    "there.csv": "",
    "there.png": "",
}
_SOLVE = ["solve", "--time-path", "time.csv", "--imp-path", "imp.csv"]
_BUDGET = [*_SOLVE, "--budget", "3ms"]


def _last(value: str) -> Callable[[list[str], re.Match[str]], list[str]]:
    """Return a change of the last argument, to what the advice says; ``value`` holds its place as {}."""
    return lambda arguments, said: [*arguments[:-1], value.format(said[1])]


def _also(*more: str) -> Callable[[list[str], re.Match[str]], list[str]]:
    return lambda arguments, said: [*arguments, *(each.format(*said.groups()) for each in more)]


def _instead(old: str) -> Callable[[list[str], re.Match[str]], list[str]]:
    return lambda arguments, said: [said[1] if each == old else each for each in arguments]


ADVICE = [
    ([*_SOLVE, "--budget", "0.001ms"], r"least reachable latency is (\S+) ms", _last("{}ms")),
    ([*_SOLVE, "--speedup", "50"], r"least reachable latency is .*, speedup ([0-9.]+)", _last("{}")),
    ([*_SOLVE, "--speedup", "2x"], r"least reachable latency is .*, speedup ([0-9.]+)", _last("{}x")),
    (_SOLVE, r"for example (--budget) (\S+)", _also("{0}", "{1}")),
    ([*_SOLVE, "--budget", "4kg"], r"for example (\S+)$", _last("{}")),
    ([*_SOLVE, "--bugdet", "3ms"], r"nearest: (--budget)", _instead("--bugdet")),
    ([*_BUDGET, "--normalise", "singel"], r"nearest: (\w+)", _last("{}")),
    ([*_BUDGET, "--alpha", "-1"], r"for example (\S+)$", _last("{}")),
    ([*_BUDGET, "--risk", "0.9"], r"for example (\S+)$", _last("{}")),
    ([*_BUDGET, "--epsilon", "x"], r"for example (\S+)$", _last("{}")),
    ([*_BUDGET, "--keep-act", "all"], r"are expected, for example (\d)", _last("{}")),
    ([*_BUDGET, "--alternatives", "100000000"], r"must be at most (\d+)", _last("{}")),
    ([*_BUDGET, "--max-labels", "1"], r"must be at least (\d+)", _last("{}")),
    ([*_BUDGET, "-o", "there.json"], r"add (--overwrite) to replace it", _also("{}")),
    ([*_BUDGET, "--frontier", "points.xlsx"], r"ends in (\.csv)", _last("points{}")),
    ([*_BUDGET, "--plot", "points.bmp"], r"ends in (\.png)", _last("points{}")),
    ([*_BUDGET, "-o", "time.csv"], r"name (another) file", _last("{}.json")),
    (["tables", "chekc", "time.csv"], r"nearest: (\w+)", _instead("chekc")),
    (["tables", "merge", "time.csv", "-o", "all.txt"], r"ends in (\.csv)|name of a (\.csv) file", _last("all.csv")),
    (["tables", "merge", "time.csv", "--tolerance", "200", "-o", "all.csv"], r"for example (\d)", _instead("200")),
    (["tables", "plot", "time.csv", "-o", "heat.bmp"], r"ends in (\.png)", _last("heat{}")),
    (
        ["tables", "plot", "time.csv", "-o", "heat.png", "--kind", "time"],
        r"needs (--solution)",
        _also("{}", "first.json"),
    ),
    (
        ["tables", "plot", "time.csv", "-o", "heat.png", "--solution", "first.json"],
        r"add (--kind) (time)",
        _also("{0}", "{1}"),
    ),
    (
        [*_SOLVE, "--budget", "-3ms", "--risk", "0.05"],
        r"as in (--budget=)-3ms",
        lambda arguments, said: [*_SOLVE, f"{said[1]}3ms"],
    ),
    (["backend"], r"nearest: (\w+)", _last("{}")),
]


@pytest.mark.parametrize(
    ("arguments", "advice", "obey"), ADVICE, ids=[" ".join(arguments[-3:]) for arguments, *_ in ADVICE]
)
def test_obeying_the_advice_works(
    arguments: list[str],
    advice: str,
    obey: Callable[[list[str], re.Match[str]], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in _FILES.items():
        (tmp_path / name).write_text(content)
    assert main(arguments) in (2, 3)
    line = capsys.readouterr().err.strip()
    said = re.search(advice, line.partition("; see `")[0])
    assert said is not None, line
    assert main(obey(arguments, said)) == 0, (line, capsys.readouterr().err)
