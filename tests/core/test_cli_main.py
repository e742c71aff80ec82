"""The command line without torch: help, errors in one line, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfold import __version__
from layerfold.cli import COMMANDS, main
from layerfold.cli._options import above, at_least, check_output, whole
from layerfold.cli._text import columns, facts
from layerfold.errors import UsageError

_TABLES = {
    "time.csv": "id,st,end,time,stdev\n0,0,1,1.0,0\n1,1,2,1.0,0\n2,0,2,1.5,0\n",
    "imp.csv": "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc\n"
    "0,0,1,1,1,,,,0\n1,1,2,1,1,,,,0\n2,0,2,1,1,,,,-2\n",
}


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Return a folder with a latency and an importance table of two layers."""
    for name, text in _TABLES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_version_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"layerfold {__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name}" not in text] == []


def test_every_module_of_a_command_is_registered() -> None:
    import layerfold.cli

    folder = Path(str(layerfold.cli.__file__)).parent
    assert sorted(COMMANDS) == sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_describes_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: layerfold {command}")
    # `tables` leads to commands of its own, and `demo` takes nothing that an example would show.
    assert "example" in text or command in ("demo", "tables")


def test_no_help_imports_a_heavy_library() -> None:
    code = (
        f"import sys\nfrom layerfold.cli import main\nfor name in {COMMANDS!r}:\n"
        "    assert main([name, '--help']) == 0\n"
        "print('loaded:', *[name for name in ('torch', 'timm', 'onnx', 'onnxruntime', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_solving_from_tables_never_imports_torch(tables: Path) -> None:
    code = (
        "import sys\nfrom layerfold.cli import main\n"
        "code = main(['solve', '--time-path', 'time.csv', '--imp-path', 'imp.csv', '--budget', '1.6', '--json'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=tables)
    assert done.returncode == 0, done.stderr
    assert '"merge_pos"' in done.stdout


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "commands:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slove"], "unknown command 'slove'; nearest: solve"),
        (["solve", "--bugdet", "3"], "unknown argument --bugdet; nearest: --budget"),
        (["solve", "--speed=3"], "unknown argument --speed; nearest: --speedup"),
        (["solve"], "required: --latency/--time-path, --importance/--imp-path; see `layerfold solve --help`"),
        (["--json"], "unrecognized arguments: --json"),
        (["bench", "a.onnx", "--threads", "0"], "argument --threads: 0: a whole number of at least 1 is expected"),
        (["bench", "a.onnx", "--target", "2"], "argument --target: 2: a number above 0, at most 1, is expected"),
        (["verify", "m", "--solution", "s", "--budget", "1", "--speedup", "2"], "not allowed with argument --budget"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    line = _one_line(capsys)
    assert line.startswith("layerfold: error: ")
    assert said in line


def test_budget_out_of_reach_is_exit_3_and_names_the_least(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ["--time-path", str(tables / "time.csv"), "--imp-path", str(tables / "imp.csv")]
    assert main(["solve", *paths, "--budget", "1.0"]) == 3
    assert "1.5 ms" in _one_line(capsys)
    assert main(["solve", *paths, "--budget", "1.6"]) == 0


def test_closed_pipe_is_quiet(tables: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "layerfold",
        "solve",
        "--time-path",
        "time.csv",
        "--imp-path",
        "imp.csv",
        "--budget",
        "2",
        "--json",
    ]
    read_end, write_end = os.pipe()
    os.close(read_end)  # nobody reads what will be written
    try:
        done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, cwd=tables, timeout=300)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_missing_package_shows_in_the_list_of_backends() -> None:
    code = "import sys\nsys.modules['onnxruntime'] = None\nfrom layerfold.cli import main\nsys.exit(main(['backends']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("onnxruntime"))
    assert "not installed" in line
    assert "pip install onnxruntime" in line


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (whole(1), "0"),
        (whole(0), "-1"),
        (whole(1), "1.5"),
        (whole(1), "²"),
        (above(0), "0"),
        (above(0), "nan"),
        (above(0), "inf"),
        (at_least(0, 1), "1.1"),
        (at_least(0), "x"),
    ],
)
def test_number_outside_its_range_is_refused(kind: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is expected"):
        kind(text)  # type: ignore[operator]


def test_number_at_the_end_of_its_range_is_taken() -> None:
    assert (whole(0)("0"), above(0, 1)("1"), at_least(0, 1)("0")) == (0, 1.0, 0.0)


def test_output_is_never_overwritten_silently(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    check_output(path, suffix=".csv")
    path.write_text("kept")
    with pytest.raises(UsageError, match=r"table\.csv: is there already; .*--overwrite"):
        check_output(path)
    check_output(path, overwrite=True)


def test_output_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a folder, expected a file name"):
        check_output(tmp_path)
    with pytest.raises(UsageError, match=r"file is a file, expected a folder"):
        check_output(tmp_path / "file" / "table.csv")
    with pytest.raises(UsageError, match=r"--svg .*ends in \.svg"):
        check_output(tmp_path / "net.png", flag="--svg", suffix=".svg")


def test_columns_are_aligned_by_their_widest_cell() -> None:
    assert columns(("name", "ms"), [("a", 10.5), ("longer", None)], right="ms").splitlines() == [
        "name      ms",
        "a       10.5",
        "longer",
    ]


def test_facts_leave_out_what_is_unknown() -> None:
    assert facts([("a", 1), ("long", None), ("bcd", "x")]) == "a    1\nbcd  x"


def test_backends_and_exports_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    ready = next(each for each in found["backends"] if each["name"] == "onnxruntime")
    assert (ready["status"], ready["remedy"]) == ("ready", None)
    assert {"onnxruntime", "onnx"} <= set(ready["versions"])
    assert [each["name"] for each in found["exports"]] == ["onnx", "tensorrt"]
