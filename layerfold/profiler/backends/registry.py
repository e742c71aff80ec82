"""Find a backend by name among the installed entry points; nothing of a vendor is imported before it is used."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any, cast

from layerfold.errors import (
    DeviceUnavailableError,
    OptionalDependencyError,
    ProfilerError,
    UsageError,
    nearest_names,
)
from layerfold.plugins import entry_points_of, is_installed, load_part
from layerfold.profiler.backends.protocol import Backend

GROUP = "layerfold.backends"
"""The entry-point group: ``name = "package.module:Class"``, in any installed package."""
_MEMBERS = ("name", "requires", "devices", "available_devices", "provenance", "compile")


def backend_names() -> tuple[str, ...]:
    """Return the names of all registered backends, installed or not, in alphabetical order."""
    return tuple(sorted(entry_points_of(GROUP)))


def backend_source(name: str) -> str:
    """Return the distribution that registers a backend, for example ``layerfold``."""
    entry = _entry(name)
    return entry.dist.name if entry.dist is not None else ""


def load_backend(name: str) -> type[Backend]:
    """Return the class registered as ``name``, whether or not its packages are installed.

    Raises:
        UsageError: no such backend.
        OptionalDependencyError: the module that defines it imports a package that is missing.
        ProfilerError: it cannot be loaded, or is no backend.
    """
    found = load_part(
        _entry(name),
        f"backend={name!r}",
        kind="backend",
        members=_MEMBERS,
        guide="docs/backends.md",
        error=ProfilerError,
    )
    return cast(type[Backend], found)


def backend_class(name: str) -> type[Backend]:
    """Return the class registered as ``name``, once all it requires is installed.

    Raises:
        UsageError, ProfilerError: as :func:`load_backend`.
        OptionalDependencyError: a package is not installed; names it and the line that installs it.
    """
    found = load_backend(name)
    missing = missing_packages(found)
    if missing:
        raise OptionalDependencyError(
            f"backend={name!r} needs the package {', '.join(missing)}; install it with: {install_line(found)}"
        )
    return found


def get_backend(name: str, *, device: str | None = None, **options: Any) -> Backend:
    """Return the backend ``name``, ready to compile.

    Args:
        name: one of :func:`backend_names`.
        device: one of the backend's devices; None for its first.
        options: keyword options of the backend, for example ``threads=1``, ``precision="float16"``.

    Raises:
        UsageError: unknown backend, device or option, or one that the device lacks.
        OptionalDependencyError: a package is missing.
        DeviceUnavailableError: the device is not there.
    """
    found = backend_class(name)
    if device is not None:
        if device not in found.devices:
            known = ", ".join(found.devices)
            raise UsageError(f"device={device!r} is not one of backend {name!r}; choose from {known}")
        options["device"] = device
    try:
        backend = found(**options)
    except TypeError as error:
        raise UsageError(f"backend={name!r} does not take these options {sorted(options)}: {error}") from error
    if not backend.is_available():
        here = found.available_devices()
        choice = f"; it has {', '.join(here)}" if here else ""
        raise DeviceUnavailableError(
            f"backend={name!r} finds no device {device or found.devices[0]!r} on this machine{choice}; "
            "see `layerfold backends`"
        )
    return backend


def missing_packages(backend: type[Backend]) -> list[str]:
    """Return the packages that a backend requires and that are not installed; imports none of them."""
    return [package for module, package in backend.requires.items() if not is_installed(module)]


def install_line(backend: type[Backend]) -> str:
    """Return the command that installs what a backend requires."""
    extra = getattr(backend, "extra", None)
    return f"pip install 'layerfold[{extra}]'" if extra else f"pip install {' '.join(backend.requires.values())}"


def _entry(name: str) -> EntryPoint:
    entries = entry_points_of(GROUP)
    if not any(entry.value.startswith("layerfold.") for entry in entries.values()):
        raise ProfilerError(
            "layerfold's own backends are not registered, so its installation is older than its "
            "files; install it again, for example with: pip install -e ."
        )
    if name not in entries:
        known = ", ".join(sorted(entries))
        raise UsageError(
            f"backend={name!r} is not known; choose from {known}{nearest_names(name, entries)}, or "
            "install a package that registers it"
        )
    return entries[name]
