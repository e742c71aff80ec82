"""The two TensorRT packages behind one door: ``tensorrt``, and ``tensorrt_rtx``, which builds without a GPU."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from layerfold.errors import ExportError, OptionalDependencyError, UsageError, WriteError, nearest_names
from layerfold.files import replacing

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_loggers: dict[str, Any] = {}
_LETTERS = {"VERBOSE": "V", "INFO": "I", "WARNING": "W", "ERROR": "E", "INTERNAL_ERROR": "F"}


def import_tensorrt(library: str | None = None) -> Any:
    """Import a TensorRT package.

    Args:
        library: ``tensorrt`` or ``tensorrt_rtx``; None for ``tensorrt`` where it is installed beside a GPU (it builds
            only there, by timing kernels), else ``tensorrt_rtx``.

    Raises:
        UsageError: another name.
        OptionalDependencyError: it is not installed, or a library that it loads is not.
    """
    if library is None:
        library = "tensorrt" if _is_installed("tensorrt") and _has_gpu() else "tensorrt_rtx"
    if library not in LIBRARIES:
        raise UsageError(f"library={library!r} is not one of {', '.join(LIBRARIES)}{nearest_names(library, LIBRARIES)}")
    remedy = "'layerfold[tensorrt]'" if library == "tensorrt_rtx" else "tensorrt"
    try:
        if library == "tensorrt":
            import tensorrt

            return tensorrt
        import tensorrt_rtx

        return tensorrt_rtx
    except (ImportError, OSError) as error:  # OSError: the package is there, a library it loads is not
        cause = " ".join(str(error).split())
        raise OptionalDependencyError(
            f"TensorRT engines need the package {library} ({cause}); run: pip install {remedy}"
        ) from error


def compute_capability(trt: Any, text: str) -> Any:
    """Return TensorRT's own value for a compute capability like ``8.9``.

    Raises:
        UsageError: this package builds for none, or not for that one.
    """
    kind = getattr(trt, "ComputeCapability", None)
    if kind is None:
        raise UsageError(
            f"compute_capability={text!r}: {trt.__name__} builds for the GPU at hand only; "
            "leave it out, or install tensorrt_rtx"
        )
    names = {f"{name[2:-1]}.{name[-1]}": name for name in dir(kind) if name.startswith("SM")}
    if text not in names:
        raise UsageError(
            f"compute_capability={text!r} is not supported by this TensorRT; choose from "
            f"{', '.join(sorted(names, key=float))}{nearest_names(text, names)}"
        )
    return getattr(kind, names[text])


def parser_errors(parser: Any) -> str:
    """Return what an ONNX parser complains of, with the node where it says so."""
    parts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node {error.node_name()}: " if error.node_name() else ""
        parts.append(f"{node}{' '.join(error.desc().split())}")
    return "; ".join(parts)


def library_logger(trt: Any) -> Any:
    """Return the process's only logger of a package: TensorRT keeps the first one it is given."""
    if trt.__name__ not in _loggers:

        class _Collector(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []
                self.file: IO[str] | None = None

            def log(self, severity: Any, message: str) -> None:
                name = str(severity).rpartition(".")[2]
                if name in ("ERROR", "INTERNAL_ERROR"):
                    self.errors.append(" ".join(message.split()))
                if self.file is not None:
                    self.file.write(f"[{time.strftime('%H:%M:%S')}] [{_LETTERS.get(name, name)}] {message}\n")

            def last(self) -> str:
                return self.errors[-1] if self.errors else "no reason given"

        _loggers[trt.__name__] = _Collector()
    return _loggers[trt.__name__]


@contextlib.contextmanager
def logging_to(logger: Any, path: str | os.PathLike[str] | None, heading: str) -> Iterator[None]:
    """Forget earlier errors, and write every line that TensorRT says meanwhile to a file, a heading first.

    The lines are written beside it and take its place at the end, of a build that fails too: what it said is wanted
    then most of all.

    Raises:
        ExportError: the file cannot be written.
    """
    logger.errors.clear()
    if path is None:
        yield
        return
    failure: BaseException | None = None
    try:
        with replacing(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
            file.write(heading + "\n")
            logger.file = file
            try:
                yield
            except BaseException as error:
                failure = error
            finally:
                logger.file = None
    except WriteError as error:
        if failure is None:
            raise ExportError(f"log={os.fspath(path)!r} cannot be written: {error}") from error
    if failure is not None:
        raise failure


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
