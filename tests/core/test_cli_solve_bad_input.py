"""Bad input to ``layerfold solve`` and ``layerfold tables``: exit code, one line, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from layerfold.cli import main

TIME = [
    "id,st,end,time,stdev,st_act,end_act,signature,runs",
    "0,0,1,1.0,0.1,1,1,,5",
    "1,1,2,1.0,0.1,1,1,,5",
    "2,2,3,1.0,0.1,1,1,,5",
    "3,0,2,1.2,0.1,1,1,,5",
    "4,1,3,1.4,0.1,1,1,,5",
]
IMP = [
    "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc",
    "0,0,1,1,1,0,0,0,0",
    "1,1,2,1,1,0,0,0,0",
    "2,2,3,1,1,0,0,0,0",
    "3,0,2,1,1,0,0,0,-1",
    "4,1,3,1,1,0,0,0,-0.5",
]


@dataclass(frozen=True)
class Case:
    """One bad input: what is changed, how the command ends, and what its line must say."""

    name: str
    says: str
    time: Callable[[list[str]], list[str] | bytes | None] = list
    imp: Callable[[list[str]], list[str] | bytes | None] = list
    time_sidecar: object = None
    imp_sidecar: object = None
    flags: tuple[str, ...] = ("--budget", "2.5")
    code: int = 2


def cell(row: int, column: int, value: str) -> Callable[[list[str]], list[str]]:
    """Return a change of one cell (row as in the file, header = 1)."""

    def change(lines: list[str]) -> list[str]:
        cells = lines[row - 1].split(",")
        cells[column] = value
        return [*lines[: row - 1], ",".join(cells), *lines[row:]]

    return change


def without(row: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: lines[: row - 1] + lines[row:]


def also(line: str) -> Callable[[list[str]], list[str]]:
    return lambda lines: [*lines, line]


def raw(content: bytes) -> Callable[[list[str]], bytes]:
    return lambda lines: content


def cut(length: int) -> Callable[[list[str]], bytes]:
    return lambda lines: "\n".join(lines).encode()[:-length]


CASES = [
    # Latency table: cells.
    Case("latency NaN", "row 2, column time: 'nan', expected milliseconds", time=cell(2, 3, "nan")),
    Case("latency infinite", "column time: 'inf'", time=cell(2, 3, "inf")),
    Case("latency negative", "column time: '-1.0'", time=cell(2, 3, "-1.0")),
    Case("latency zero", "column time: '0'", time=cell(2, 3, "0")),
    Case("latency minus zero", "column time: '-0.0'", time=cell(2, 3, "-0.0")),
    Case("latency 1e308", "column time: '1e308'", time=cell(2, 3, "1e308")),
    Case("latency 1e999", "column time: '1e999'", time=cell(2, 3, "1e999")),
    Case("latency empty", "column time: ''", time=cell(3, 3, "")),
    Case("latency a word", "column time: 'fast'", time=cell(3, 3, "fast")),
    Case("latency with a unit", "column time: '1.0ms'", time=cell(3, 3, "1.0ms")),
    Case("latency with an underscore", "column time: '1_0'", time=cell(3, 3, "1_0")),
    Case("latency in other digits", "column time: '\u0661'", time=cell(3, 3, "\u0661")),
    Case("latency with a space", "column time: ' 1.0'", time=cell(3, 3, " 1.0")),
    Case("latency a formula", "column time: '=1+1'", time=cell(3, 3, "=1+1")),
    Case("spread negative", "row 2, column stdev: '-0.1'", time=cell(2, 4, "-0.1")),
    Case("spread NaN", "column stdev: 'NaN'", time=cell(2, 4, "NaN")),
    Case("start negative", "row 2, column st: '-1', expected a position", time=cell(2, 1, "-1")),
    Case("start with a fraction", "column st: '0.0'", time=cell(2, 1, "0.0")),
    Case("start empty", "column st: ''", time=cell(2, 1, "")),
    Case("start too large", "column st: '99999999'", time=cell(2, 1, "99999999")),
    Case("end before start", "row 4, column end: '1', expected a position after st=2", time=cell(4, 2, "1")),
    Case("end equals start", "column end: '2', expected a position after st=2", time=cell(4, 2, "2")),
    Case("state of 2", "column end_act: '2', expected 0 or 1", time=cell(2, 6, "2")),
    Case("runs negative", "column runs: '-5'", time=cell(2, 8, "-5")),
    Case("signature a formula", "column signature: '=cmd()'", time=cell(2, 7, "=cmd()")),
    Case("signature that starts with at", "column signature: '@SUM(1)'", time=cell(2, 7, "@SUM(1)")),
    Case("signature with a quote in it", "column signature", time=cell(2, 7, '"a""b"')),
    Case("signature with a line break", "column signature", time=cell(2, 7, '"a\nb"')),
    # Latency table: rows and columns.
    Case(
        "segment twice",
        "row 7, column st: '0', expected each segment once; (0,1) stands in row 2 too",
        time=also("5,0,1,2.0,0.1,1,1,,5"),
    ),
    Case("gap in the chain", "no entries lead from 0 to 3", time=lambda lines: [lines[0], lines[1], lines[3]]),
    Case("single layers only at the start", "no entries lead from 0 to 9", time=also("5,8,9,2.0,0.1,1,1,,5")),
    Case("too few fields", "row 7, column st_act: 5 fields, expected 9", time=also("5,0,3,2.0,0.1")),
    Case("too many fields", "row 7, column runs: 10 fields, expected 9", time=also("5,0,3,2.0,0.1,1,1,,5,6")),
    Case("no column time", "row 1: no column 'time'", time=cell(1, 3, "latency")),
    Case(
        "semicolons",
        "row 1: semicolons between the columns, expected commas",
        time=lambda lines: [line.replace(",", ";").replace(".", ",") for line in lines],
    ),
    Case(
        "tabs",
        "row 1: tabs between the columns, expected commas",
        imp=lambda lines: [line.replace(",", "\t") for line in lines],
    ),
    Case("column twice", "row 1, column time: named twice", time=cell(1, 4, "time")),
    Case("header only", "no rows after the header", time=lambda lines: lines[:1]),
    Case(
        "cut within the last number", "the file ends without a line break", time=raw(b"st,end,time\n0,1,1.25\n1,2,1.2")
    ),
    Case("cut within a row", "fields, expected 9", time=cut(10)),
    Case(
        "cut within a quoted field", "row 7", time=lambda lines: ("\n".join(lines) + '\n5,0,3,1.0,0.1,1,1,"ab').encode()
    ),
    Case("text after a quote", "row 7", time=also('5,0,3,1.0,0.1,1,1,"ab"c,5')),
    Case("empty file", "empty; expected the columns st,end,time", time=raw(b"")),
    Case("blank lines only", "empty", time=raw(b"\n\n  \n")),
    Case("not text", "is not UTF-8 text", time=raw(b"\x89PNG\r\n\x1a\n\xff\xff")),
    Case("zero bytes", "zero byte", time=raw(b"id,st,end,time\n0,0,1,\x00\n")),
    Case("no such latency table", "no such file", time=lambda lines: None),
    # Importance table.
    Case("no such importance table", "no such file", imp=lambda lines: None),
    Case("importance NaN", "row 2, column val_acc: 'nan', expected points", imp=cell(2, 8, "nan")),
    Case("importance 1e308", "column val_acc: '1e308'", imp=cell(2, 8, "1e308")),
    Case("importance -1e308", "column val_acc: '-1e308'", imp=cell(2, 8, "-1e308")),
    Case("importance empty", "column val_acc: ''", imp=cell(2, 8, "")),
    Case("importance a formula", "column val_acc: '=A1'", imp=cell(2, 8, "=A1")),
    Case("loss a word", "column train_loss: 'x'", imp=cell(2, 5, "x")),
    Case("activation state of 2", "column st_act: '2', expected 0 or 1", imp=cell(2, 3, "2")),
    Case("activation state missing", "column end_act: ''", imp=cell(2, 4, "")),
    Case("segment left out altogether", "no entry for st=1, end=3", imp=without(6)),
    Case(
        "pairs that every way needs",
        "no options lead through the chain 0..3",
        imp=lambda lines: [
            cell(4, 3, "0")(lines)[row] if row == 3 else cell(6, 3, "0")(lines)[row] for row in range(len(lines))
        ],
    ),
    Case(
        "pair twice", "row 7, column st: '0', expected each (st,end,st_act,end_act) once", imp=also("5,0,1,1,1,0,0,0,0")
    ),
    Case("segment outside the network", "(3,4) lies in no chain", imp=also("5,3,4,1,1,0,0,0,0")),
    Case("no importance column", "no column 'val_acc', 'importance' or 'imp'", imp=cell(1, 8, "score")),
    Case("tables swapped", "no column 'st_act'", imp=lambda lines: [line for line in TIME_PLAIN]),
    # Sidecars.
    Case(
        "sidecar of another network",
        "network_hash differs (aaaa and bbbb)",
        time_sidecar={"network_hash": "aaaa"},
        imp_sidecar={"network_hash": "bbbb"},
    ),
    Case(
        "sidecar of another input shape",
        "input_shape differs",
        time_sidecar={"input_shape": [1, 3, 32, 32]},
        imp_sidecar={"input_shape": [1, 3, 64, 64]},
    ),
    Case("sidecar promises more rows", "5 rows, expected the 171", time_sidecar={"rows": 171}),
    Case("sidecar no JSON", "is no JSON", time_sidecar="{"),
    Case("sidecar a list", "expected a JSON object", time_sidecar=[1]),
    Case("sidecar of a later schema", "schema 9 is not known", time_sidecar={"schema": 9}),
    Case("fixed part negative", "fixed_ms=-1.0", time_sidecar={"fixed_ms": -1.0}),
    Case("fixed part NaN", "fixed_ms=nan", time_sidecar='{"fixed_ms": NaN}'),
    Case("scale zero", "scale=0", time_sidecar={"scale": 0}),
    Case("scale text", "scale='1'", time_sidecar={"scale": "1"}),
    Case("chains that overlap", "without overlap", time_sidecar={"chains": [[0, 2], [1, 3]]}),
    Case("chains no pairs", "chains.0=3: expected", time_sidecar={"chains": [3]}),
    Case("chains too short", "lies in no chain", time_sidecar={"chains": [[0, 2]]}),
    Case("device no text", "device=7: expected a valid string", time_sidecar={"device": 7}),
    Case("input shape of zero", "input_shape.0=0: expected", time_sidecar={"input_shape": [0]}),
    # Arguments.
    Case("no budget", "no budget: give --budget", flags=()),
    Case(
        "budget with a wrong unit",
        "--budget 4kg: a latency in ms, us or s is expected, for example 4.5ms",
        flags=("--budget", "4kg"),
    ),
    Case("budget zero", "above zero", flags=("--budget", "0")),
    Case("budget negative", "--budget -3", flags=("--budget=-3",)),
    Case("budget NaN", "--budget nan", flags=("--budget", "nan")),
    Case("budget infinite", "--budget 1e999", flags=("--budget", "1e999")),
    Case("budget empty", "a latency in ms", flags=("--budget", "")),
    Case("budget out of reach", "the least reachable latency is 2.2 ms", flags=("--budget", "2.1"), code=3),
    Case("speedup zero", "--speedup 0", flags=("--speedup", "0")),
    Case("speedup a word", "--speedup fast", flags=("--speedup", "fast")),
    Case("speedup out of reach", "no plan meets it", flags=("--speedup", "2"), code=3),
    Case("alpha negative", "--alpha -1", flags=("--budget", "3", "--alpha=-1")),
    Case("risk above a half", "--risk 0.9", flags=("--budget", "3", "--risk", "0.9")),
    Case("epsilon above one", "--epsilon 2", flags=("--budget", "3", "--epsilon", "2")),
    Case("unknown normalisation", "invalid choice", flags=("--budget", "3", "--normalise", "mean")),
    Case(
        "kernel limit without signatures",
        "no signature that tells its kernel",
        flags=("--budget", "3", "--max-kernel", "5"),
    ),
    Case("parameter cap without sizes", "max_params cannot be checked", flags=("--budget", "3", "--max-params", "9")),
    Case("positions no numbers", "--keep-act a: positions are expected", flags=("--budget", "3", "--keep-act", "a")),
    Case("positions backwards", "--keep-act 3-1", flags=("--budget", "3", "--keep-act", "3-1")),
    Case("position outside", "keep_activations=9: not in", flags=("--budget", "3", "--keep-act", "9")),
    Case("layer outside", "never_merge=0: not in", flags=("--budget", "3", "--never-merge", "0")),
    Case("every merge forbidden", "no plan meets it", flags=("--budget", "2.9", "--never-merge", "1-3"), code=3),
    Case("alternatives zero", "--alternatives 0", flags=("--budget", "3", "--alternatives", "0")),
    Case(
        "alternatives of two budgets",
        "--alternatives: give one",
        flags=("--budget", "3", "--budget", "2.5", "--alternatives", "2"),
    ),
    Case("frontier of unknown kind", "--frontier f.xlsx", flags=("--budget", "3", "--frontier", "f.xlsx")),
    Case("plot of unknown kind", "--plot f.txt", flags=("--budget", "3", "--plot", "f.txt")),
    Case("unknown flag", "--bugdet", flags=("--bugdet", "3")),
    Case("max labels too few", "--max-labels 3", flags=("--budget", "3", "--max-labels", "3")),
]
TIME_PLAIN = ["id,st,end,time,stdev", "0,0,1,1.0,0.1"]


def write(path: Path, lines: list[str] | bytes | None, sidecar: object) -> None:
    if lines is not None:
        content = lines if isinstance(lines, bytes) else ("\n".join(lines) + "\n").encode()
        path.write_bytes(content)
    if sidecar is not None:
        path.with_name(path.name + ".json").write_text(sidecar if isinstance(sidecar, str) else json.dumps(sidecar))


def names(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_solve_refuses_in_one_line_and_writes_nothing(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "time.csv", case.time(TIME), case.time_sidecar)
    write(tmp_path / "imp.csv", case.imp(IMP), case.imp_sidecar)
    before = names(tmp_path)
    code = main(["solve", "--time-path", "time.csv", "--imp-path", "imp.csv", *case.flags, "-o", "out/solution.json"])
    printed = capsys.readouterr()
    assert case.says in printed.err
    assert code == case.code
    assert printed.err.count("\n") == 1, printed.err
    assert printed.out == ""
    assert names(tmp_path) == before


def test_the_tables_themselves_are_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "time.csv", TIME, None)
    write(tmp_path / "imp.csv", IMP, None)
    assert main(["solve", "--time-path", "time.csv", "--imp-path", "imp.csv", "--budget", "2.5", "-o", "s.json"]) == 0
    assert names(tmp_path) == ["imp.csv", "s.json", "time.csv"]


def test_there_are_at_least_sixty_cases_each_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("target", ["time.csv", "time.csv/solution.json", "folder"])
def test_output_that_cannot_be_written_is_refused(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "time.csv", TIME, None)
    write(tmp_path / "imp.csv", IMP, None)
    before = (tmp_path / "time.csv").read_bytes()
    assert main(["solve", "--time-path", "time.csv", "--imp-path", "imp.csv", "--budget", "2.5", "-o", target]) == 2
    assert f"-o {target}: " in capsys.readouterr().err
    assert (tmp_path / "time.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["check", "nothing.csv"], "no such file"),
        (["check", "."], "is a folder, expected a file"),
        (["diff", "time.csv", "nothing.csv"], "no such file"),
        (["diff", "time.csv", "time.csv", "--most", "x"], "--most x"),
        (["merge", "time.csv", "-o", "all.txt"], "expected a name that ends in .csv"),
        (["merge", "time.csv", "imp.csv", "-o", "all.csv"], "expected parts alike"),
        (["merge", "time.csv", "-o", "all.csv", "--tolerance", "-1"], "--tolerance"),
        (["count", "time.csv"], "invalid choice"),
    ],
)
def test_tables_command_refuses_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "time.csv", TIME, None)
    write(tmp_path / "imp.csv", IMP, None)
    before = names(tmp_path)
    assert main(["tables", *arguments]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert names(tmp_path) == before
