"""What may reach a terminal: no control characters of names, no endless lines, results alone on stdout."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

import layerfold.cli
from layerfold.cli._output import json_text
from layerfold.cli._text import columns, facts
from layerfold.terminal import name_text, one_line, printable, results_alone, show

NASTY = [
    ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
    ("bell\x07 back\x08", r"bell\x07 back\x08"),
    ("over\rwritten", r"over\rwritten"),
    ("\x9b31m", r"\x9b31m"),
    ("\u202egnp.exe", r"\u202egnp.exe"),
    ("\u2066x\u2069", r"\u2066x\u2069"),
    ("\udcff.csv", r"\xff.csv"),
    ("\ud800", r"\ud800"),
    ("del\x7f", r"del\x7f"),
    ("zero\x00", r"zero\x00"),
]


@pytest.mark.parametrize(("text", "shown"), NASTY)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(text) == shown
    assert name_text(text) == shown
    assert shown in columns(("name",), [(text,)])
    assert facts([("name", text)]) == f"name  {shown}"


@pytest.mark.parametrize("text", ["plain", "Füße 中文 ×", "two\nlines\tand a tab", "", "a b"])
def test_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("a\ttab", r"a\ttab"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("plain name.png", "plain name.png"),
        (Path("Füße/中文.png"), "Füße/中文.png"),
    ],
)
def test_a_name_stays_on_one_line(name: object, shown: str) -> None:
    assert name_text(name) == shown


@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [
        ("--weights " + "x" * 5000 + ": no such file", "--weights xxx", "xxx: no such file"),
        ("a " * 3000 + "end", "a a", "a end"),
        ("\x1b" * 3000, r"\x1b", r"\x1b"),
        ("/" + "é" * 4000 + ".csv: is a folder; name a file", "/é", "is a folder; name a file"),
        ("first\n" * 2000, "first first", "first"),
    ],
)
def test_a_long_line_is_cut_where_the_value_is(text: str, head: str, tail: str) -> None:
    line = one_line(text)
    assert len(line) <= 500
    assert line.startswith(head)
    assert line.endswith(tail)
    assert "..." in line


def test_a_cell_with_a_line_break_stays_one_row() -> None:
    assert columns(("name", "ms"), [("a\nb", 1)]).splitlines() == ["name  ms", r"a\nb  1"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), [float("nan")], {"a": (float("inf"),)}])
def test_json_has_no_number_that_json_does_not_know(value: object) -> None:
    text = json_text({"value": value})
    assert "null" in text
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_only_results_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with results_alone():
        print("a user's model prints")
        sys.stdout.write("and writes \x1b[31m\n")
        with results_alone():
            show("result \x1b[31m")
    print("after")
    printed = capsys.readouterr()
    assert printed.out == "result \\x1b[31m\nafter\n"
    assert printed.err == "a user's model prints\nand writes \\x1b[31m\n"


def test_a_bar_of_a_library_may_return_to_the_start_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with results_alone():
        sys.stderr.write("\rloading 50 %")
        sys.stderr.write("\rloading \r100 %\n")
    assert capsys.readouterr().err == "\rloading 50 %\rloading \\r100 %\n"


def test_no_command_prints_a_result_past_show() -> None:
    """``print`` within a command goes to stderr; a result that is printed so would be lost to who reads stdout."""
    found = []
    for path in Path(str(layerfold.cli.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "print"
                and "file" not in {keyword.arg for keyword in node.keywords}
            ):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
