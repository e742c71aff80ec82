"""pyproject.toml tells the truth: dependencies are used, what is used is declared, extras are real."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import layerfold

_ROOT = Path(__file__).resolve().parents[2]
_MODULE_OF = {
    "annotated-types": "annotated_types",
    "huggingface-hub": "huggingface_hub",
    "pillow": "PIL",
    "tensorrt-rtx-cu13": "tensorrt_rtx",
    "torch-tensorrt": "torch_tensorrt",
}
# Not imported by name: torch.onnx.export is built on it.
_BEHIND_ANOTHER = {"onnxscript"}
# In place of tensorrt_rtx where the user has it: PyPI's package of that name fetches the real one from elsewhere.
_ALTERNATIVES = {"tensorrt"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _modules(requirements: list[str]) -> set[str]:
    names = [re.split(r"[<>=!~;\[ ]", requirement)[0] for requirement in requirements]
    return {_MODULE_OF.get(name, name) for name in names}


def _imported() -> set[str]:
    found = set()
    for path in (_ROOT / "layerfold").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                found.update(arg.value.partition(".")[0] for arg in node.args if isinstance(arg, ast.Constant))
    return found


def test_every_import_is_declared(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    optional = [requirement for name, group in extras.items() if name != "dev" for requirement in group]
    declared = _modules(project["project"]["dependencies"] + optional) | _ALTERNATIVES
    foreign = _imported() - set(sys.stdlib_module_names) - {"layerfold"}
    assert foreign <= declared


def test_every_dependency_is_imported(project: dict[str, Any]) -> None:
    assert _modules(project["project"]["dependencies"]) - _BEHIND_ANOTHER <= _imported()


@pytest.mark.parametrize("extra", ["demo", "openvino", "tensorrt", "torch-tensorrt"])
def test_extra_adds_something_that_is_imported(project: dict[str, Any], extra: str) -> None:
    assert _modules(project["project"]["optional-dependencies"][extra]) <= _imported()


def test_console_script_exists(project: dict[str, Any]) -> None:
    module, _, function = project["project"]["scripts"]["layerfold"].partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_changelog_has_the_version() -> None:
    assert f"## [{layerfold.__version__}]" in (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_package_is_marked_as_typed() -> None:
    assert (_ROOT / "layerfold" / "py.typed").is_file()


def test_no_file_of_the_package_is_a_placeholder() -> None:
    for path in (_ROOT / "layerfold").rglob("*.py"):
        assert "TODO" not in path.read_text(encoding="utf-8"), f"{path.relative_to(_ROOT)} holds a TODO"
