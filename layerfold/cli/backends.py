"""``layerfold backends``: what this machine can measure on, and what is missing for the rest."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layerfold.cli._options import add_command, add_result_arguments
from layerfold.cli._output import show, show_json
from layerfold.cli._text import columns
from layerfold.plugins import is_installed

if TYPE_CHECKING:
    from layerfold.profiler.backends import BackendOptions


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


@dataclass(frozen=True, kw_only=True)
class _Device:
    """A device that can be used now, with its precisions and layouts."""

    precisions: list[str]
    layouts: list[str]


@dataclass(frozen=True, kw_only=True)
class _Backend:
    """Facts of a backend.

    Attributes:
        name, package: its own, and the distribution that registers it.
        status: ``ready``, ``no device``, ``not installed`` or ``broken`` (a backend of another package that does not
            load).
        device, driver, versions, options: as it says itself, once it is ready.
        devices: those that can be used now.
        remedy: what helps where it is not ready.
    """

    name: str
    package: str
    status: str = "ready"
    device: str | None = None
    devices: dict[str, _Device] = field(default_factory=dict)
    driver: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    options: BackendOptions = field(default_factory=dict)
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Export:
    """A format that ``layerfold export`` writes; ``remedy`` says what is missing, if anything is."""

    name: str
    status: str
    remedy: str | None


def run(args: argparse.Namespace) -> int:
    """Look at each backend and print."""
    from layerfold.profiler import backend_names

    backends, exports = [_look_at(name) for name in backend_names()], _look_at_exports()
    if args.json:
        show_json({"backends": [asdict(each) for each in backends], "exports": [asdict(each) for each in exports]})
        return 0
    rows = []
    for each in backends:
        versions = ", ".join(f"{name} {version}" for name, version in each.versions.items() if name != "onnx")
        missing = (each.remedy or "").removeprefix(f"backend={each.name!r} ")
        rows.append(
            (each.name, each.status, ", ".join(each.devices), _shown_precisions(each.devices), versions or missing)
        )
    show(columns(("backend", "status", "devices", "precisions", "version, or what is missing"), rows))
    formats = [(each.name, each.status, each.remedy) for each in exports]
    show("\n" + columns(("export", "status", "what is missing"), formats))
    return 0


def _shown_precisions(devices: dict[str, _Device]) -> str:
    """Return the precisions of all devices; where they differ, by device."""
    texts = {device: ", ".join(facts.precisions) for device, facts in devices.items()}
    if len(set(texts.values())) <= 1:
        return "".join(set(texts.values()))
    return "; ".join(f"{device}: {text}" for device, text in texts.items())


def _look_at_exports() -> list[_Export]:
    """Return name, status and remedy of each format that `layerfold export` writes."""
    needs = {
        "onnx": (("onnx", "onnxscript", "onnxruntime"), "pip install onnx onnxscript onnxruntime"),
        "tensorrt": (("tensorrt_rtx",), "pip install 'layerfold[tensorrt]'"),
    }
    found = []
    for name, (modules, remedy) in needs.items():
        missing = [module for module in modules if not is_installed(module)]
        found.append(
            _Export(
                name=name,
                status="not installed" if missing else "ready",
                remedy=f"{', '.join(missing)}: {remedy}" if missing else None,
            )
        )
    return found


def _look_at(name: str) -> _Backend:
    """Return a backend's facts."""
    from layerfold.errors import DeviceUnavailableError, LayerfoldError, OptionalDependencyError
    from layerfold.profiler import get_backend
    from layerfold.profiler.backends.registry import backend_class, backend_source

    about = _Backend(name=name, package=backend_source(name))
    try:
        found = backend_class(name)
        facts = get_backend(name).provenance()
    except OptionalDependencyError as error:
        return replace(about, status="not installed", remedy=str(error))
    except DeviceUnavailableError as error:
        return replace(about, status="no device", remedy=str(error))
    except LayerfoldError as error:
        return replace(about, status="broken", remedy=str(error))
    devices = {}
    for device in found.available_devices():
        layouts = getattr(found, "layouts", None)
        devices[device] = _Device(
            precisions=list(found.precisions(device)), layouts=list(layouts(device)) if layouts else ["nchw"]
        )
    return replace(
        about,
        device=facts["device"],
        devices=devices,
        driver=facts["driver"],
        versions=facts["versions"],
        options=facts["options"],
    )
