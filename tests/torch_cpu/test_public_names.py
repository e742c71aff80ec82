"""Every public name is there, and the README calls what is there."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

import layerfold

_README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
_CALLS = [
    node
    for block in re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
    for node in ast.walk(ast.parse(block))
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("lf.")
]


@pytest.mark.parametrize("name", layerfold.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(layerfold, name) is not None


@pytest.mark.parametrize(
    "package", sorted(each.name for each in pkgutil.walk_packages(layerfold.__path__, "layerfold.") if each.ispkg)
)
def test_names_of_every_package_resolve(package: str) -> None:
    module = import_module(package)
    assert [name for name in getattr(module, "__all__", ()) if getattr(module, name, None) is None] == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`lf\.(\w+)`", _README))))
def test_name_in_the_readme_is_public(name: str) -> None:
    assert name in layerfold.__all__


@pytest.mark.parametrize("call", _CALLS, ids=ast.unparse)
def test_call_in_the_readme_fits_the_signature(call: ast.Call) -> None:
    function = getattr(layerfold, ast.unparse(call.func).removeprefix("lf."))
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    inspect.signature(function).bind(*call.args, **keywords)
