"""Find a backend by name; nothing of a vendor is imported before it is used."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, cast

from layerfold.errors import DeviceUnavailableError, OptionalDependencyError, UsageError, nearest_names
from layerfold.profiler.backends.protocol import Backend

BACKENDS: dict[str, str] = {
    "onnxruntime": "layerfold.profiler.backends.onnxruntime:OnnxRuntimeBackend",
}
"""Name -> dotted path of the class."""


def backend_class(name: str) -> type[Backend]:
    """Return the class registered as ``name``.

    Raises:
        UsageError: no such backend.
        OptionalDependencyError: a package that it requires is not installed.
    """
    if name not in BACKENDS:
        known = ", ".join(sorted(BACKENDS))
        raise UsageError(f"backend={name!r} is not known; choose from {known}{nearest_names(name, BACKENDS)}")
    module_name, _, class_name = BACKENDS[name].partition(":")
    found = cast(type[Backend], getattr(importlib.import_module(module_name), class_name))
    missing = [package for module, package in found.requires.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise OptionalDependencyError(
            f"backend={name!r} needs the package {', '.join(missing)}; install it with: {_install_line(found, missing)}"
        )
    return found


def get_backend(name: str, *, device: str | None = None, **options: Any) -> Backend:
    """Return the backend ``name``, ready to compile.

    Args:
        name: a key of ``BACKENDS``.
        device: one of the backend's devices; None for its first.
        options: keyword options of the backend, for example ``threads=1``.

    Raises:
        UsageError: unknown backend, device or option.
        OptionalDependencyError: a package is missing.
        DeviceUnavailableError: the device is not there.
    """
    found = backend_class(name)
    if device is not None and device not in found.devices:
        raise UsageError(f"device={device!r} is not one of backend {name!r}; choose from {', '.join(found.devices)}")
    try:
        backend = found(**options)
    except TypeError as error:
        raise UsageError(f"backend={name!r} does not take these options {sorted(options)}: {error}") from error
    if not backend.is_available():
        raise DeviceUnavailableError(f"backend={name!r} finds no device {device or found.devices[0]!r} on this machine")
    return backend


def _install_line(backend: type[Backend], missing: list[str]) -> str:
    return f"pip install 'layerfold[{backend.extra}]'" if backend.extra else f"pip install {' '.join(missing)}"
