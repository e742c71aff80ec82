"""The examples of docs/solver.md run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerfold.cli import build_parser

PAGE = Path(__file__).resolve().parents[2] / "docs" / "solver.md"


def test_python_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), {})


def test_commands_of_the_page_are_understood() -> None:
    lines = re.findall(r"^\$ layerfold (.*?)(?: {2,}#.*)?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        build_parser().parse_args(line.split())


def test_every_flag_that_the_page_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["solve", "--help"])
    with_help = capsys.readouterr().out
    with pytest.raises(SystemExit):
        build_parser().parse_args(["tables", "merge", "--help"])
    with_help += capsys.readouterr().out + "--against"
    for flag in set(re.findall(r"--[a-z]+(?:-[a-z]+)*", PAGE.read_text(encoding="utf-8"))):
        assert flag in with_help, f"{flag} is in docs/solver.md but not in the command"


def test_pictures_and_records_of_the_page_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (PAGE.parent / name).is_file()
    for name in re.findall(r"`(solver_\w+\.json)`", text):
        assert (PAGE.parents[1] / "benchmarks" / "results" / name).is_file()
    for name in re.findall(r"`(benchmarks/\w+/\w+\.py)`", text):
        assert (PAGE.parents[1] / name).is_file()
