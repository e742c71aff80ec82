"""The scripts in benchmarks/ stand in their README, and use names of layerfold that are there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_FILES = sorted((_ROOT / "benchmarks").glob("*/*.py"))


def _is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def test_each_script_has_one_line_in_the_readme() -> None:
    text = (_ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `python (benchmarks/\w+/\w+\.py)[^`]*` \|", text, re.MULTILINE)
    assert sorted(named) == [str(path.relative_to(_ROOT)) for path in _FILES if _is_script(path)]


@pytest.mark.parametrize("path", _FILES, ids=[path.stem for path in _FILES])
def test_what_a_script_takes_from_layerfold_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("layerfold", "tests"):
            module = importlib.import_module(str(node.module))
            for name in (each.name for each in node.names):
                found = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                assert found, f"line {node.lineno}: {node.module} has no {name}"
