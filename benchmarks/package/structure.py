"""How the package is built: what a maintainer has to hold in mind, in numbers.

    python benchmarks/package/structure.py [--json]

Prints import circles between modules, the modules of each package and its longest path of imports, functions with many
parameters, ``dict[str, Any]``, imports of underscored modules from another package, and lines. Imports inside functions
count, those for the type checker alone do not.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import grimp
import networkx as nx
from record import ROOT

_MOST_PARAMETERS = 8


def import_graph() -> nx.DiGraph[str]:
    """Return the modules of the package, with an edge from each to those that it imports."""
    found = grimp.build_graph("layerfold", exclude_type_checking_imports=True)
    edges = [(one, other) for one in found.modules for other in found.find_modules_directly_imported_by(one)]
    graph: nx.DiGraph[str] = nx.DiGraph(edges)
    graph.add_nodes_from(found.modules)
    return graph


def circles(graph: nx.DiGraph[str]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not."""
    return sorted(sorted(each) for each in nx.strongly_connected_components(graph) if len(each) > 1)


def package_of(module: str) -> str:
    """Return the package that a module lies in; a package lies in itself."""
    is_package = (ROOT / Path(*module.split("."))).is_dir()
    return module if is_package else module.rpartition(".")[0]


def packages(graph: nx.DiGraph[str]) -> list[dict[str, Any]]:
    """Return, by package, how many modules it has and how long the longest path of imports inside it is."""
    rows = []
    for package in sorted({package_of(module) for module in graph}):
        inside = graph.subgraph([module for module in graph if package_of(module) == package])
        condensed = nx.condensation(inside)
        rows.append(
            {
                "package": package,
                "modules": len(inside),
                "levels": len(nx.dag_longest_path(condensed)),
                "lines": sum(len(path.read_text().splitlines()) for path in _files(package)),
            }
        )
    return rows


def _files(package: str) -> Iterator[Path]:
    yield from (ROOT / Path(*package.split("."))).glob("*.py")


def private_imports(graph: nx.DiGraph[str]) -> list[str]:
    """Return the imports of an underscored module from outside its package."""
    return sorted(
        f"{one} imports {other}"
        for one, other in graph.edges
        if any(part.startswith("_") and not part.startswith("__") for part in other.split("."))
        and not f"{package_of(one)}.".startswith(f"{_owner(other)}.")
    )


def _owner(module: str) -> str:
    """Return the package that an underscored module belongs to."""
    parts = module.split(".")
    first = next(place for place, part in enumerate(parts) if part.startswith("_"))
    return ".".join(parts[:first])


def long_signatures() -> list[tuple[int, str]]:
    """Return the functions with more parameters than a reader can hold, the longest first."""
    found = []
    for path in sorted((ROOT / "layerfold").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if count > _MOST_PARAMETERS:
                    found.append((count, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    return sorted(found, reverse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    graph = import_graph()
    text = "\n".join(path.read_text() for path in (ROOT / "layerfold").rglob("*.py"))
    found: dict[str, Any] = {
        "circles": circles(graph),
        "packages": packages(graph),
        "long_signatures": long_signatures(),
        "private_imports": private_imports(graph),
        "untyped_dictionaries": text.count("dict[str, Any]"),
        "lines": len(text.splitlines()),
    }
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"import circles: {len(found['circles'])}")
    for circle in found["circles"]:
        print(f"  {', '.join(circle)}")
    print(f"\n{'package':<34}{'modules':>9}{'levels':>8}{'lines':>8}")
    for row in found["packages"]:
        print(f"{row['package']:<34}{row['modules']:>9}{row['levels']:>8}{row['lines']:>8}")
    print(f"\nfunctions with more than {_MOST_PARAMETERS} parameters: {len(found['long_signatures'])}")
    for count, name in found["long_signatures"]:
        print(f"{count:>4}  {name}")
    print(f"\nimports of underscored modules from another package: {len(found['private_imports'])}")
    for line in found["private_imports"]:
        print(f"  {line}")
    print(f"\ndict[str, Any]: {found['untyped_dictionaries']}\nlines: {found['lines']:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
