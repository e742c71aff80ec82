"""The README names commands, flags, files and targets that exist."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_COMMANDS = sorted(set(re.findall(r"(?:`|\$ )layerfold (\w+)", _README)))


def _help(capsys: pytest.CaptureFixture[str], command: str) -> str:
    from layerfold.cli import main

    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", _COMMANDS)
def test_command_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"layerfold {command}" in _help(capsys, command)


def test_flags_of_compress_exist(capsys: pytest.CaptureFixture[str]) -> None:
    used = set(re.findall(r"--[a-z-]+", "".join(re.findall(r"\$ layerfold compress.*", _README))))
    section = _README.partition("## Compress your own model")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `-")]
    used |= {flag for line in table for flag in re.findall(r"--[a-z-]+", line)}
    assert len(used) >= 5
    text = _help(capsys, "compress")
    assert {flag for flag in used if flag not in text} == set()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [_README, (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")]
    named = {name for page in pages for name in re.findall(r"(?:\$ |`)make ([a-z-]+)", page)}
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_to_files(page: str) -> None:
    text = re.sub(r"<!--.*?-->", "", (_ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((_ROOT / page).parent / target).exists(), target
