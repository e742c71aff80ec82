"""The Makefile installs once, and says clearly what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the Makefile and pyproject.toml alone."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(_ROOT / name, tmp_path / name)
    return tmp_path


def _make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "-C", str(folder), "--no-print-directory", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


def _stamp(folder: Path, age_s: float) -> None:
    (folder / ".venv").mkdir()
    stamp = folder / ".venv" / ".installed"
    stamp.touch()
    made_s = (folder / "pyproject.toml").stat().st_mtime - age_s
    os.utime(stamp, (made_s, made_s))


@pytest.mark.parametrize("target", ["demo", "test"])
def test_first_time_installs(folder: Path, target: str) -> None:
    commands = _make(folder, "-n", target).stdout
    assert "-m venv .venv" in commands
    assert "pip install" in commands


@pytest.mark.parametrize(
    ("target", "command"),
    [("demo", "-m layerfold demo -o demo-out"), ("test", "-m pytest -n 2"), ("lint", "lint-imports")],
)
def test_second_time_starts_at_once(folder: Path, target: str, command: str) -> None:
    _stamp(folder, age_s=-10)
    commands = _make(folder, "-n", target).stdout
    assert command in commands
    assert "pip" not in commands


def test_only_docs_install_what_docs_need(folder: Path) -> None:
    _stamp(folder, age_s=-10)
    assert "pip install --quiet  -e '.[docs]'" in _make(folder, "-n", "docs").stdout
    shutil.copy2(folder / ".venv" / ".installed", folder / ".venv" / ".installed-docs")
    commands = _make(folder, "-n", "docs").stdout
    assert "-m sphinx" in commands
    assert "pip" not in commands


def test_changed_dependencies_are_installed(folder: Path) -> None:
    _stamp(folder, age_s=10)
    assert "pip install" in _make(folder, "-n", "test").stdout


def test_demo_takes_flags_and_a_folder(folder: Path) -> None:
    _stamp(folder, age_s=-10)
    done = _make(folder, "-n", "demo", "OUT=/tmp/elsewhere", "DEMO_FLAGS=--quick")
    assert "-m layerfold demo -o /tmp/elsewhere --quick" in done.stdout


def test_python_that_is_too_old_is_named(folder: Path) -> None:
    old = folder / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    done = _make(folder, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "error: Python 3.9.2 found, but layerfold needs Python 3.11 to 3.13" in done.stderr


def test_python_that_is_missing_is_named(folder: Path) -> None:
    done = _make(folder, "install", "PYTHON=/no/such/python")
    assert done.returncode != 0
    assert "error: /no/such/python not found" in done.stderr


def test_install_that_was_cut_short_is_done_again(folder: Path) -> None:
    (folder / ".venv" / "bin").mkdir(parents=True)  # no stamp: the install never ended
    assert "pip install" in _make(folder, "-n", "test").stdout
