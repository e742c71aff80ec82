"""``layerfold backends``: what this machine can measure on, and what is missing for the rest."""

from __future__ import annotations

import argparse
import importlib.util
import json
from typing import Any

from layerfold.cli._options import add_command, add_result_arguments
from layerfold.cli._text import columns


def add_parser(subparsers: Any) -> None:
    """Add ``backends`` to the command line."""
    parser = add_command(
        subparsers, "backends", "list backends and export formats: which are ready here, what the others need",
        "List the backends that can measure a network and the formats that it can be exported to: which are ready on "
        "this machine, and what the others need.",
        "  layerfold backends",
    )  # fmt: skip
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look at each backend and print."""
    from layerfold.profiler import BACKENDS

    found = {"backends": [_look_at(name) for name in sorted(BACKENDS)], "exports": _look_at_exports()}
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    rows = [(each["name"], each["status"], each["device"] or each["remedy"]) for each in found["backends"]]
    print(columns(("backend", "status", "device, or what is missing"), rows))
    exports = [(each["name"], each["status"], each["remedy"]) for each in found["exports"]]
    print("\n" + columns(("export", "status", "what is missing"), exports))
    return 0


def _look_at_exports() -> list[dict[str, Any]]:
    """Return name, status and remedy of each format that `layerfold export` writes."""
    needs = {"onnx": (("onnx", "onnxscript", "onnxruntime"), "pip install onnx onnxscript onnxruntime"),
             "tensorrt": (("tensorrt_rtx",), "pip install 'layerfold[tensorrt]'")}
    found = []
    for name, (modules, remedy) in needs.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        found.append({"name": name, "status": "not installed" if missing else "ready",
                      "remedy": f"{', '.join(missing)}: {remedy}" if missing else None})
    return found


def _look_at(name: str) -> dict[str, Any]:
    """Return name, status (``ready``, ``not installed`` or ``no device``), and the device or the remedy."""
    from layerfold.errors import DeviceUnavailableError, OptionalDependencyError
    from layerfold.profiler import get_backend

    about: dict[str, Any] = {"name": name, "device": None, "versions": {}, "remedy": None}
    try:
        facts = get_backend(name).provenance()
    except OptionalDependencyError as error:
        return {**about, "status": "not installed", "remedy": str(error)}
    except DeviceUnavailableError as error:
        return {**about, "status": "no device", "remedy": str(error)}
    return {**about, "status": "ready", "device": facts["device"], "versions": facts["versions"]}
