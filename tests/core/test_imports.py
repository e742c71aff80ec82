"""`import layerfold` and the light commands start without torch; the list of public names is in order."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import layerfold

_SOURCE = Path(layerfold.__file__)
_HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "matplotlib",
    "pyarrow",
    "mlxtend",
)


def _heavy_after(code: str) -> list[str]:
    """Run ``code`` in a fresh Python and return which heavy modules it loaded."""
    report = f"import sys; print(); print(*[name for name in {_HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def _run_main(*arguments: str) -> str:
    """Return code that runs the command line and goes on after its exit."""
    return f"from layerfold.cli import main\ntry:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass"


@pytest.mark.parametrize(
    "code",
    [
        "import layerfold, layerfold.cli",
        "import layerfold; layerfold.Solution, layerfold.LatencyTable, layerfold.Network, layerfold.solve_frontier",
        "import layerfold.tables, layerfold.solver, layerfold.graph.network, layerfold.report",
        _run_main("--help"),
        _run_main("solve", "--help"),
        _run_main("compress", "--help"),
    ],
    ids=["package", "torch-free-names", "torch-free-packages", "help", "solve-help", "compress-help"],
)
def test_heavy_libraries_stay_out_of(code: str) -> None:
    assert _heavy_after(code) == []


def test_heavy_library_probe_sees_an_import() -> None:
    assert _heavy_after("import onnxruntime") == ["onnxruntime"]


def test_public_names_are_sorted_and_unique() -> None:
    assert layerfold.__all__ == sorted(set(layerfold.__all__))


def test_every_error_class_is_public() -> None:
    from layerfold import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    names = {found.__name__ for found in classes if issubclass(found, errors.LayerfoldError)}
    assert names <= set(layerfold.__all__)


def test_names_for_type_checkers_are_the_names_looked_up() -> None:
    tree = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {
        node.module: tuple(alias.name for alias in node.names)
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
    }
    assert declared == layerfold._HOMES


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = layerfold.no_such_name
