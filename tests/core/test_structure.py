"""How the package hangs together: no circles, and nobody reaches into another package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks" / "package"


@pytest.fixture(scope="module")
def structure(request: pytest.FixtureRequest):
    before = list(sys.path)  # the script adds benchmarks/lib
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import structure
    finally:
        sys.path[:] = before
    return structure


def test_no_two_modules_import_each_other(structure) -> None:
    assert structure.circles(structure.import_graph()) == []


def test_underscored_modules_are_imported_in_their_own_package_only(structure) -> None:
    assert structure.private_imports(structure.import_graph()) == []


def test_a_circle_and_a_reach_into_another_package_are_found(structure) -> None:
    graph = structure.nx.DiGraph([("layerfold.a", "layerfold.b"), ("layerfold.b", "layerfold.c")])
    graph.add_edge("layerfold.c", "layerfold.a")
    assert structure.circles(graph) == [["layerfold.a", "layerfold.b", "layerfold.c"]]
    graph = structure.nx.DiGraph([("layerfold.solver._sum", "layerfold.tables._csv")])
    assert structure.private_imports(graph) == ["layerfold.solver._sum imports layerfold.tables._csv"]
    assert structure.private_imports(structure.nx.DiGraph([("layerfold.tables.kernel", "layerfold.tables._csv")])) == []
