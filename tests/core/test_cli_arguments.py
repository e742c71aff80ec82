"""Every flag refuses values that it cannot take: flags are found by asking the parser, so that new ones count too."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator

import pytest

from layerfold.cli import COMMANDS, build_parser, main
from layerfold.cli._parser import subcommands
from layerfold.errors import UsageError
from layerfold.terminal import one_line

# No number in plain digits, or one that nothing here takes.
NO_NUMBERS = [
    "",
    " ",
    "x",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "-1e400",
    "9" * 400,
    "1_000",
    "0x10",
    "\u0663",
    "\u00b2",
    "1,,2",
    "--",
    "1\n2",
    "\x1b[31m1",
    "1" * 5000,
    "\u2212 1",
    "true",
    "None",
    "1.5.2",
]
_PLAIN_NUMBERS = ("1", "0.5", "4", "0.5,0.5", "3x8x8", "1ms")


PARSER = build_parser()


def _commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    below = subcommands(parser)
    if path and not below:
        yield path, parser
    for name, each in below.items():
        yield from _commands(each, (*path, name))


def _is_numeric(action: argparse.Action) -> bool:
    """Say whether a flag takes numbers: its type makes one, or several, of a plain one."""
    if action.type is None:
        return False
    for text in _PLAIN_NUMBERS:
        try:
            found = action.type(text)  # type: ignore[operator]
        except Exception:
            continue
        several = found if isinstance(found, (tuple, frozenset)) else [found]
        return all(isinstance(each, (int, float)) for each in several)
    return False


def _flags(*, numeric: bool) -> list[tuple[tuple[str, ...], str]]:
    return [
        (path, action.option_strings[-1])
        for path, parser in _commands(PARSER)
        for action in parser._actions
        if action.option_strings
        and action.nargs != 0
        and (_is_numeric(action) if numeric else action.choices is not None)
    ]


NUMERIC = _flags(numeric=True)


def test_there_are_numeric_flags_of_every_kind() -> None:
    names = {flag for _, flag in NUMERIC}
    assert {
        "--budget",
        "--speedup",
        "--margin",
        "--threads",
        "--alpha",
        "--input",
        "--mean",
        "--keep-gates",
        "--keep-act",
        "--milestones",
        "--tolerance",
        "--around",
        "--whole-plans",
        "--seed",
    } <= names
    assert len(NUMERIC) > 150


def test_no_flag_takes_whatever_python_takes_for_a_number() -> None:
    assert [
        (path, action.option_strings)
        for path, parser in _commands(PARSER)
        for action in parser._actions
        if action.type in (int, float, complex, bool)
    ] == []


def test_what_is_called_a_number_in_the_help_has_a_type() -> None:
    called = {"N", "X", "K", "P", "S", "R", "E", "A", "MS", "PCT", "CxHxW", "M,M,M", "S,S,S", "POS", "LAYERS", "BUDGET"}
    assert [
        (path, action.option_strings)
        for path, parser in _commands(PARSER)
        for action in parser._actions
        if action.metavar in called and action.type is None
    ] == []


def _refusal(path: tuple[str, ...], argument: str) -> str:
    """Return the line with which the command's parser refuses an argument."""
    with pytest.raises(UsageError) as caught:
        PARSER.parse_args([*path, argument])
    return one_line(str(caught.value))


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: ascii(text[:12]))
def test_every_numeric_flag_refuses_what_is_no_number(text: str) -> None:
    taken = []
    for path, flag in NUMERIC:
        line = _refusal(path, f"{flag}={text}")
        if flag not in line or "are required" in line or "\x1b" in line or len(line) > 500:
            taken.append((path, flag, line[:200]))
    assert taken == []


@pytest.mark.parametrize("text", ["-1", "-0.5", "1e300", "1e12", "99999999999999"])
def test_numbers_out_of_every_range_are_refused(text: str) -> None:
    taken = set()
    for path, flag in NUMERIC:
        line = _refusal(path, f"{flag}={text}")  # if not for the number, then for what is missing
        if f"{flag} {text}" not in line and f"{flag}: {text}" not in line:
            taken.add(flag)
    harmless = {"--mean", "--std"}  # of images; any number
    if not text.startswith("-"):
        # Caps, and times to wait for: larger than all there is means no limit. Of training, divergence is an error.
        harmless |= {
            "--max-params",
            "--max-macs",
            "--max-growth",
            "--cap-s",
            "--checkpoint-every",
            "--grad-clip",
            "--weight-decay",
            "--learning-rate",
            "--temperature",
            "--decay-power",
            "--mixup",
            "--cutmix",
            "--feature-weight",
        }
    assert taken - harmless == set()


@pytest.mark.parametrize(("path", "flag"), _flags(numeric=False), ids=lambda each: str(each))
def test_a_misspelt_choice_names_the_nearest(path: tuple[str, ...], flag: str) -> None:
    parser = dict(_commands(PARSER))[path]
    known = next(action.choices for action in parser._actions if flag in action.option_strings)
    assert known is not None
    for choice in map(str, known):
        line = _refusal(path, f"{flag}={choice}x")
        assert f"{flag}: invalid choice: '{choice}x'" in line
        assert "nearest: " in line or len(choice) < 3


def test_bad_arguments_are_refused_without_torch() -> None:
    code = (
        "import sys\nfrom layerfold.cli import main\n"
        f"for path, flag in {NUMERIC[::10]!r}:\n    assert main([*path, flag + '=x']) == 2\n"
        "print(*[name for name in ('torch', 'timm', 'onnx', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tables"], "tables: say what to do: check, merge, diff, plot; see `layerfold tables --help`"),
        (["tables", "plott", "a.csv"], "nearest: plot"),
        (["tables", "merge", "--tolerence", "3"], "unknown argument --tolerence; nearest: --tolerance"),
        (["solve", "--budget", "-5ms"], "--budget: expected one argument; a value that begins with - is given with ="),
        (["solve", "--budget", "--", "x"], "argument --budget: expected one argument"),
        (["solve", "--alternatives", "100000000"], "--alternatives 100000000: must be at most 100"),
        (["compress", "m", "--data", "d", "-o", "o", "--margin", "100"], "--margin 100: a number from 0 to 50"),
        (["compress", "m", "--data", "d", "-o", "o", "--margin", "-1"], "--margin -1: a number from 0 to 50"),
        (["compress", "m", "--data", "d", "-o", "o", "--whole-plans", "-1"], "--whole-plans -1: must be at least 0"),
        (["inspect", "m", "--input", "3x100000x100000"], "more than 268,435,456 values"),
        (["export", "--quiet=yes"], "unknown argument --quiet"),
        (["bench", "--json=yes", "a.onnx"], "ignored explicit argument 'yes'"),
        (["complie"], "unknown command 'complie'; nearest: compare, compress"),
        (["\x1b[2J"], r"unknown command '\x1b[2J'"),
        (["--budget", "3"], "unrecognized arguments: --budget 3"),
        (["tables", "diff", "a", "b", "c"], "unrecognized arguments: c; see `layerfold tables diff --help`"),
        (["backends", "x", "-y"], "unrecognized arguments: x -y; see `layerfold backends --help`"),
        (["solve", "--debug", "--speed", "2"], "unknown argument --speed"),
    ],
)
def test_odd_command_lines_are_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err.splitlines()[-1]
    assert "--debug" in arguments or printed.err.count("\n") == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_endless_arguments_give_short_lines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--no-such-" + "x" * 5000]) == 2
    assert len(capsys.readouterr().err) <= 520


@pytest.mark.parametrize(
    ("command", "former", "now", "value"),
    [
        (["solve", "--importance", "i.csv"], "--time-path", "--latency", "t.csv"),
        (["solve", "--latency", "t.csv"], "--imp-path", "--importance", "i.csv"),
        (["compress", "m", "--data", "d", "--fastest", "-o", "o"], "--importance", "--method", "distill"),
        (["run", "n.onnx"], "--input", "--image", "a.png"),
        (["search", "m", "-o", "s.json"], "--keep", "--keep-gates", "3"),
    ],
)
def test_former_names_of_flags_are_taken(command: list[str], former: str, now: str, value: str) -> None:
    assert PARSER.parse_args([*command, former, value]) == PARSER.parse_args([*command, now, value])
