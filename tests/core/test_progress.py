"""Progress on stderr: a log gets a line every ten seconds, whatever the work does, and says what is being done."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from contextlib import nullcontext

import pytest

from layerfold import progress
from layerfold.progress import progress_bar, waiting


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ten seconds pass in a moment."""
    monkeypatch.setattr(progress, "_EVERY_S", 0.05)


def lines_within(capsys: pytest.CaptureFixture[str], at_least: int) -> list[str]:
    """Return the lines printed so far, once there are that many."""
    printed: list[str] = []
    until = time.monotonic() + 20
    while len(printed) < at_least and time.monotonic() < until:
        time.sleep(0.01)
        printed += capsys.readouterr().err.splitlines()
    return printed


def test_work_that_finishes_nothing_is_told_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("verify", 24):
        printed = lines_within(capsys, 4)
    assert len(printed) >= 4
    assert printed[0] == "verify: 0/24"
    assert all(re.fullmatch(r"verify: 0/24(, \d+ s)?", line) for line in printed), "no ETA where nothing is known"


def test_work_after_the_last_unit_is_told_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("plans", 2) as bar:
        bar.advance(2)
        bar.describe("plans, 1 unclear, once more")
        printed = lines_within(capsys, 4)
    assert printed[1].startswith("plans: 2/2, ")
    assert printed[-1].startswith("plans, 1 unclear, once more: 2/2, ")


def test_fast_work_prints_its_ends_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 1000.0)
    with progress_bar("fast", 500) as bar:
        for _ in range(500):
            bar.advance()
    with waiting("too short to be told"):
        pass
    assert [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()] == ["fast: 0/500", "fast: 500/500"]


def test_waiting_tells_what_for(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("bench") as bar:
        printed = lines_within(capsys, 2)
        bar.describe("bench, again")
        later = lines_within(capsys, 2)
    assert re.fullmatch(r"bench: (\d+ s)?", printed[0])
    assert later[-1].startswith("bench, again: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_nothing_is_printed_once_the_work_is_over(
    error: type[BaseException] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = threading.active_count()
    for show in (lambda: progress_bar("done", 3), lambda: waiting("done")):
        with pytest.raises(error) if error else nullcontext(), show():
            lines_within(capsys, 1)
            if error is not None:
                raise error
    capsys.readouterr()
    time.sleep(0.2)
    assert capsys.readouterr().err == ""
    assert threading.active_count() == before


def test_nobody_reading_stderr_does_not_disturb_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with waiting("work"):
        monkeypatch.setattr(sys, "stderr", Closed())
        time.sleep(0.3)
    assert failed == []


@pytest.mark.parametrize("show", [lambda: progress_bar("x", 2, enabled=False), lambda: waiting("x", enabled=False)])
def test_quiet_prints_nothing(show: object, capsys: pytest.CaptureFixture[str]) -> None:
    with show() as bar:  # type: ignore[operator]
        bar.advance()
        bar.describe("y")
        time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_terminal_gets_a_bar_whose_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    for show in (lambda: progress_bar("profile", 4), lambda: waiting("profile")):
        screen.truncate(0)
        with show() as bar:
            bar.describe("profile, once more")
            time.sleep(1.3)
            bar.advance()
        assert "profile, once more" in screen.getvalue()
        assert "0:00:01" in screen.getvalue()
