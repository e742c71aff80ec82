"""The commands of docs/search.md and docs/comparing.md are understood, and what they call is public."""

from __future__ import annotations

import re
from pathlib import Path

import layerfold
from layerfold.cli import build_parser

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_PAGE = "".join((_DOCS / name).read_text(encoding="utf-8") for name in ("search.md", "comparing.md"))


def test_commands_of_the_page_are_understood() -> None:
    lines = re.findall(r"^\$ layerfold (.*)$", _PAGE, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        build_parser().parse_args(line.split())


def test_names_of_the_page_are_public() -> None:
    names = set(re.findall(r"\blf\.(\w+)", _PAGE))
    assert len(names) > 8
    assert names <= set(layerfold.__all__)


def test_flags_of_the_page_exist() -> None:
    parser = build_parser()
    commands = next(action for action in parser._actions if hasattr(action, "choices") and action.choices).choices
    known = {option for name in ("search", "finetune", "compare") for option in commands[name]._option_string_actions}
    assert set(re.findall(r"`(--[a-z-]+)", _PAGE)) <= known


def test_pictures_of_the_page_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", _PAGE):
        assert (_DOCS / target).exists(), target
