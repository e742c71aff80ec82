"""``layerfold backends``: what this machine can measure on, and what is missing for the rest."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from layerfold.cli._options import add_command, add_result_arguments
from layerfold.cli._output import show, show_json
from layerfold.cli._text import columns


def add_parser(subparsers: Any) -> None:
    """Add ``backends`` to the command line."""
    parser = add_command(
        subparsers,
        "backends",
        "list backends and export formats: which are ready here, what the others need",
        "List the backends that can measure a network and the formats that it can be exported to: which are ready on "
        "this machine, with their devices, precisions and versions, and what the others need.",
        "  layerfold backends",
    )
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look at each backend and print."""
    from layerfold.profiler import backend_names

    found = {"backends": [_look_at(name) for name in backend_names()], "exports": _look_at_exports()}
    if args.json:
        show_json(found)
        return 0
    rows = []
    for each in found["backends"]:
        versions = ", ".join(f"{name} {version}" for name, version in each["versions"].items() if name != "onnx")
        missing = (each["remedy"] or "").removeprefix(f"backend={each['name']!r} ")
        rows.append(
            (
                each["name"],
                each["status"],
                ", ".join(each["devices"]),
                _shown_precisions(each["devices"]),
                versions or missing,
            )
        )
    show(columns(("backend", "status", "devices", "precisions", "version, or what is missing"), rows))
    exports = [(each["name"], each["status"], each["remedy"]) for each in found["exports"]]
    show("\n" + columns(("export", "status", "what is missing"), exports))
    return 0


def _shown_precisions(devices: dict[str, dict[str, Any]]) -> str:
    """Return the precisions of all devices; where they differ, by device."""
    texts = {device: ", ".join(facts["precisions"]) for device, facts in devices.items()}
    if len(set(texts.values())) <= 1:
        return "".join(set(texts.values()))
    return "; ".join(f"{device}: {text}" for device, text in texts.items())


def _look_at_exports() -> list[dict[str, Any]]:
    """Return name, status and remedy of each format that `layerfold export` writes."""
    needs = {
        "onnx": (("onnx", "onnxscript", "onnxruntime"), "pip install onnx onnxscript onnxruntime"),
        "tensorrt": (("tensorrt_rtx",), "pip install 'layerfold[tensorrt]'"),
    }
    found = []
    for name, (modules, remedy) in needs.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        found.append(
            {
                "name": name,
                "status": "not installed" if missing else "ready",
                "remedy": f"{', '.join(missing)}: {remedy}" if missing else None,
            }
        )
    return found


def _look_at(name: str) -> dict[str, Any]:
    """Return a backend's facts.

    ``status`` is ``ready``, ``no device``, ``not installed`` or ``broken`` (a backend of another package that does not
    load); ``devices`` holds those that can be used now, with their precisions and layouts.
    """
    from layerfold.errors import DeviceUnavailableError, LayerfoldError, OptionalDependencyError
    from layerfold.profiler import get_backend
    from layerfold.profiler.backends.registry import backend_class, backend_source

    about: dict[str, Any] = {
        "name": name,
        "package": backend_source(name),
        "status": "ready",
        "device": None,
        "devices": {},
        "driver": "",
        "versions": {},
        "options": {},
        "remedy": None,
    }
    try:
        found = backend_class(name)
        facts = get_backend(name).provenance()
    except OptionalDependencyError as error:
        return {**about, "status": "not installed", "remedy": str(error)}
    except DeviceUnavailableError as error:
        return {**about, "status": "no device", "remedy": str(error)}
    except LayerfoldError as error:
        return {**about, "status": "broken", "remedy": str(error)}
    devices = {}
    for device in found.available_devices():
        layouts = getattr(found, "layouts", None)
        devices[device] = {
            "precisions": list(found.precisions(device)),
            "layouts": list(layouts(device)) if layouts else ["nchw"],
        }
    return {
        **about,
        "device": facts["device"],
        "devices": devices,
        "driver": facts["driver"],
        "versions": facts["versions"],
        "options": facts["options"],
    }
