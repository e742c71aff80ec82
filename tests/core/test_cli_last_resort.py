"""Whatever goes wrong is one line and an exit code; the traceback is in a file, or on stderr with ``--debug``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfold.cache_folder import default_cache_folder
from layerfold.cli import main
from layerfold.errors import UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's cache folder."""
    monkeypatch.setenv("LAYERFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LAYERFOLD_DEBUG", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return what lets ``layerfold backends`` raise."""

    def let(error: BaseException) -> None:
        def run(args: object) -> int:
            raise error

        monkeypatch.setattr("layerfold.cli.backends.run", run)

    return let


def _recursion() -> BaseException:
    def deeper() -> None:
        deeper()

    try:
        deeper()
    except RecursionError as error:
        return error
    raise AssertionError


UNFORESEEN = [
    KeyError("x"),
    ZeroDivisionError("float division by zero"),
    AssertionError(),
    _recursion(),
    ValueError("two\nlines \x1b[31m and more"),
    TypeError("y" * 9000),
    IndexError("list index out of range"),
    RuntimeError("\udcff"),
    UnicodeDecodeError("utf-8", b"", 0, 1, ""),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_an_unforeseen_error_is_a_line_with_the_place_of_its_details(
    error: BaseException, failing: Callable[[BaseException], None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert main(["backends", "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"layerfold: error: this is a bug in layerfold: {type(error).__name__}")
    assert len(printed.err) <= 501
    assert "\x1b" not in printed.err
    (details,) = (cache / "errors").iterdir()
    assert details.name in printed.err
    text = details.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "$ layerfold backends --json\n" in text
    assert f"python {sys.version.split()[0]}" in text


NO_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 7.28 TiB for an array"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Storage size calculation overflowed with sizes=[1, 3, 9223372036854775807]"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:20])
def test_no_memory_is_no_bug(
    error: BaseException, failing: Callable[[BaseException], None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert main(["backends"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("layerfold: error: out of memory")
    assert line.count("\n") == 1
    assert not cache.exists()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "gone.csv"),
        PermissionError(13, "Permission denied", b"\xffx"),
        IsADirectoryError(21, "Is a directory", "folder"),
        OSError(28, "No space left on device"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_an_error_of_the_system_is_a_line_without_details(
    error: BaseException, failing: Callable[[BaseException], None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert main(["backends"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("layerfold: error: ")
    assert line.count("\n") == 1
    assert str(error.args[1]) in line
    assert not cache.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "{long}.onnx"],
        ["inspect", "{long}.py:net"],
        ["tables", "check", "{long}.csv"],
        ["export", "{long}.onnx", "-o", "o", "--formats", "onnx"],
        ["run", "{long}.onnx", "--input", "a.png"],
        ["tables", "merge", "a.csv", "-o", "{long}.csv"],
        ["profile", "own.py:net", "-o", "{long}/a.csv"],
        ["merge", "{long}.safetensors", "-o", "a.safetensors"],
    ],
)
def test_a_name_longer_than_names_can_be_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([text.format(long="a" * 300) for text in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize(
    ("folder", "asked", "nearest"),
    [
        (("original.onnx", "merged.onnx"), "orignal.onnx", "original.onnx"),
        (("net.onnx", "net.csv"), "nett.onnx", "net.onnx"),
        (("a.onnx",), "quite-another.onnx", ""),
        ((), "a.onnx", ""),
        (("outer.onnx/", "outed.onnx"), "outet.onnx", "outed.onnx"),
    ],
)
def test_a_missing_network_names_the_nearest_file_beside_it(
    folder: tuple[str, ...],
    asked: str,
    nearest: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in folder:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("")
    assert main(["run", asked, "--input", "a.png"]) == 2
    assert capsys.readouterr().err == (
        f"layerfold: error: FILE {asked}: no such file" + (f"; nearest: {nearest}" if nearest else "") + "\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--debug", "backends"],
        ["backends", "--debug"],
        ["backends", "--json", "--debug"],
        ["--debug", "backends", "--debug"],
        ["backends", "--debug", "--json"],
    ],
)
def test_debug_shows_the_traceback_wherever_it_stands(
    arguments: list[str], failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(UsageError("--x 1: must be 2"))
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "layerfold: error: --x 1: must be 2"


@pytest.mark.parametrize(("value", "is_shown"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_debug_may_be_set_in_the_environment(
    value: str,
    is_shown: bool,
    failing: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LAYERFOLD_DEBUG", value)
    failing(KeyError("x"))
    assert main(["backends"]) == 1
    assert ("Traceback" in capsys.readouterr().err) == is_shown


def test_the_latest_twenty_details_are_kept(
    failing: Callable[[BaseException], None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(23):
        failing(KeyError(number))
        main(["backends"])
    kept = sorted((cache / "errors").iterdir())
    assert len(kept) == 20
    assert "KeyError: 22" in kept[-1].read_text()
    assert "KeyError: 3\n" in kept[0].read_text()


def test_details_find_a_place_where_the_cache_has_none(
    failing: Callable[[BaseException], None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file, where the folder should be")
    failing(KeyError("x"))
    assert main(["backends"]) == 1
    line = capsys.readouterr().err
    place = Path(line.split("details are in ")[1].split(",")[0])
    assert "KeyError" in place.read_text()
    place.unlink()
    place.parent.rmdir()


def test_a_user_without_a_home_is_told_what_to_set(
    failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(key: object) -> object:
        raise KeyError(key)

    for name in ("LAYERFOLD_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UsageError, match=r"^HOME is not set.*; set LAYERFOLD_CACHE to a folder$"):
        default_cache_folder()
    failing(KeyError("x"))
    assert main(["backends"]) == 1
    line = capsys.readouterr().err
    assert "this is a bug in layerfold" in line
    place = Path(line.split("details are in ")[1].split(",")[0])
    assert "KeyError" in place.read_text()
    place.unlink()
    place.parent.rmdir()


@pytest.mark.parametrize("code", [0, 3, "text", None])
def test_sys_exit_within_a_command_is_no_success(
    code: object, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(SystemExit(code))
    assert main(["backends"]) == 1
    line = capsys.readouterr().err
    assert line == f"layerfold: error: something ended the program (exit {code!r}); run again with --debug\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('mine')", "raised KeyError: 'mine'"),
        ("import sys; sys.exit(0)", "ended the program (sys.exit(0)); let it raise an error instead"),
        ("[][1]", "raised IndexError"),
        ("1 / 0", "raised ZeroDivisionError"),
        ("assert False, 'no'", "raised AssertionError: no"),
    ],
)
def test_an_error_of_a_users_own_file_names_it_and_its_line(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from layerfold.factories import call_factory

    (tmp_path / "own.py").write_text(f"def make():\n    return fails\n\n\ndef fails():\n    {body}\n")
    called = call_factory(f"{tmp_path / 'own.py'}:make")
    monkeypatch.setattr("layerfold.cli.backends.run", lambda args: called())
    assert main(["backends"]) == 1
    line = capsys.readouterr().err
    assert line.startswith(f"layerfold: error: {tmp_path / 'own.py'}, line 6, {said}")
    assert "bug" not in line


def _program(body: str) -> list[str]:
    """Return a program like the console script, whose command ``backends`` does as the body says."""
    return [
        sys.executable,
        "-c",
        "import contextlib, os, sys, time, layerfold.cli.backends as command\n"
        f"def run(args):\n    {body}\n    return 0\ncommand.run = run\nsys.argv = ['layerfold', 'backends']\n"
        "from layerfold.cli import main\nsys.exit(main())",
    ]


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "ended by SIGTERM; run the same command again to go on"),
        (signal.SIGHUP, 129, "ended by SIGHUP; run the same command again to go on"),
        (signal.SIGINT, 130, "interrupted; run the same command again to go on"),
    ],
)
def test_a_signal_ends_the_command_with_one_line(number: int, code: int, said: str, tmp_path: Path) -> None:
    sign, closed = tmp_path / "begun", tmp_path / "closed"
    body = (
        f"open({str(sign)!r}, 'w').close()\n    try: time.sleep(600)\n    finally: open({str(closed)!r}, 'w').close()"
    )
    # Where these tests run under nohup, SIGHUP is ignored, and what is ignored stays so in a child.
    process = subprocess.Popen(
        _program(body),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    for _ in range(6000):
        if sign.exists():
            break
        time.sleep(0.05)
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (code, "", f"layerfold: {said}\n")
    assert closed.exists(), "what was begun is closed"


@pytest.mark.parametrize(
    ("streams", "code", "err"),
    [
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2>&-", 0, ""),
        (">/dev/full", 1, "layerfold: error: stdout: cannot be written (No space left on device)\n"),
        ("| true", 1, ""),
    ],
)
def test_streams_that_take_nothing_do_no_harm(streams: str, code: int, err: str, tmp_path: Path) -> None:
    """Of closed streams, the next file that is opened takes the number: nothing may be printed into it."""
    (tmp_path / "program.py").write_text(
        _program(
            "handle = open('file.txt', 'w')\n    print('a model prints')\n"
            "    with contextlib.suppress(OSError): os.write(1, b'a library prints')\n"
            "    from layerfold.terminal import show\n    time.sleep(0.3)\n"
            "    show('x' * 100_000)\n    handle.write('mine')\n    handle.close()"
        )[2]
    )
    shell = f"set -o pipefail; '{sys.executable}' program.py {streams}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (done.returncode, done.stderr.replace("a model prints\n", "")) == (code, err)
    if code == 0:
        assert (tmp_path / "file.txt").read_text() == "mine"


def test_a_deleted_folder_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = [
        sys.executable,
        "-c",
        "import os, sys\nos.rmdir(os.getcwd())\nfrom layerfold.cli import main\n"
        "sys.exit(main(['tables', 'check', 'a.csv']))",
    ]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, cwd=gone)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "layerfold: error: the current folder was deleted; go to another one (cd) and run the command again\n"
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "ascii:strict"])
def test_any_encoding_of_the_terminal_takes_every_text(encoding: str) -> None:
    body = "from layerfold.terminal import show; show('1.2× – 中文 \\udcff'); print('é \\ud800', file=sys.stderr)"
    done = subprocess.run(
        _program(body),
        capture_output=True,
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"1.2")
    assert b"\\xff" in done.stdout


@pytest.mark.parametrize("command", ["compress", "profile", "bench", "solve", "search"])
def test_a_command_for_one_process_refuses_several_and_one_of_them_says_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = {
        "compress": ["m", "--data", "d", "--fastest", "-o", "o"],
        "profile": ["m", "--dry-run"],
        "bench": ["a.onnx"],
        "solve": ["--time-path", "a", "--imp-path", "b", "--knee"],
        "search": ["m", "-o", "o.json"],
    }
    monkeypatch.setenv("WORLD_SIZE", "4")
    said = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        assert main([command, *lines[command]]) == 2
        said.append(capsys.readouterr().err)
    assert said[0].startswith(f"layerfold: error: {command}: was started 4 times at once")
    assert said[1:] == ["", "", ""]
