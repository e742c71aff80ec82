"""Build TensorRT engines; ``tensorrt_rtx`` needs no GPU for it."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from layerfold.errors import ExportError, UsageError
from layerfold.export.engine_check import EngineCheck, PutFacts, check_engine
from layerfold.export.precision import canonical_precision, has_quantised_nodes, is_half, to_half
from layerfold.export.trt_library import (
    compute_capability,
    import_tensorrt,
    library_logger,
    logging_to,
    parser_errors,
)
from layerfold.files import JsonObject, JsonValue, read_bytes, replacing_all, sidecar_path, write_bytes
from layerfold.quantise.symmetric import symmetric_form

_SCHEMA = 2
_BUILD_LOCK = threading.Lock()


class EngineOptions(TypedDict):
    """How an engine was built.

    Attributes:
        tf32: whether float32 may be computed in TF32.
        optimization_level: the builder's.
        timing_cache: ``new``, ``reused`` or ``rejected``, or why it was not used; None where none was named.
    """

    tf32: bool
    optimization_level: int
    timing_cache: str | None


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What was built; also the JSON beside the engine.

    Attributes:
        engine_path: the engine file.
        engine_bytes, engine_sha256: its size and hash.
        precision: ``float32`` (TF32 off), ``float16`` (inputs and outputs stay float32), or ``int8`` of a QDQ model.
        compute_capabilities: those it was built for; empty for the builder's own choice.
        inputs, outputs: name -> ``{"shape": [...], "dtype": "float32"}``.
        onnx_sha256: of the ONNX bytes it was built from.
        library, versions: the package that built it, and versions; an engine runs only with the same one.
        options: how it was built.
        build_s: seconds that the builder took.
        check: how the engine was checked.
        preprocessing: how images become inputs, or None where unknown.
        date: ISO 8601, UTC.
    """

    engine_path: str
    engine_bytes: int
    engine_sha256: str
    precision: str
    compute_capabilities: tuple[str, ...]
    inputs: dict[str, PutFacts]
    outputs: dict[str, PutFacts]
    onnx_sha256: str
    library: str
    versions: dict[str, str]
    options: EngineOptions
    build_s: float
    check: EngineCheck
    preprocessing: Mapping[str, JsonValue] | None
    date: str
    schema: int = field(default=_SCHEMA)

    def to_json(self) -> JsonObject:
        """Return what the JSON file holds: the path is its name only, so that both files can be moved."""
        return {**asdict(self), "engine_path": Path(self.engine_path).name}


def build_engine(
    onnx_bytes: bytes,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    compute_capabilities: Sequence[str] = (),
    library: str | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    preprocessing: Mapping[str, JsonValue] | None = None,
) -> EngineReport:
    """Build an engine, check it, and write it with a JSON file beside it (``<name>.json``).

    Where a GPU of a fitting kind is, the engine is loaded back, run, and compared with the ONNX graph; elsewhere what
    can be read of it is checked (``layerfold.export.engine_check.check_engine``).

    Args:
        onnx_bytes: a serialised ONNX model with static shapes.
        path: the engine file; its folder is made.
        precision: ``float32``, with TF32 off; ``float16``: weights and feature maps in halves; ``int8``: of a model
            with QuantizeLinear and DequantizeLinear nodes, whose zero points are made zero first.
        compute_capabilities: GPUs to build for, for example ``("8.6", "12.0")``; empty for the builder's default.
        library: ``tensorrt`` or ``tensorrt_rtx``; None for what fits this machine.
        timing_cache: file of kernel timings to use and to add to, so that a second build is quick; made where it is
            not there. ``tensorrt_rtx`` times no kernels when it builds: it has no use for one.
        log: file for all that TensorRT says while it builds.
        preprocessing: how images become inputs, for ``layerfold run``.

    Raises:
        UsageError: unknown precision or compute capability, or int8 without a quantised model.
        OptionalDependencyError: TensorRT is not installed.
        ExportError: the parser or the builder refuses the graph (names the node where it says so), the engine
            differs from the graph, or a file cannot be written.
    """
    plan = compile_engine(
        onnx_bytes,
        precision=precision,
        compute_capabilities=compute_capabilities,
        library=library,
        timing_cache=timing_cache,
        log=log,
        title=Path(path).name,
    )
    target, trt, content, precision = Path(path), plan.library, plan.content, plan.precision
    check = check_engine(content, trt, onnx_bytes, plan.inputs, plan.outputs, precision, compute_capabilities)
    report = EngineReport(
        engine_path=str(path),
        engine_bytes=len(content),
        engine_sha256=hashlib.sha256(content).hexdigest(),
        precision=precision,
        compute_capabilities=tuple(compute_capabilities),
        inputs=plan.inputs,
        outputs=plan.outputs,
        onnx_sha256=hashlib.sha256(onnx_bytes).hexdigest(),
        library=trt.__name__,
        versions={trt.__name__: trt.__version__, "layerfold": _own_version()},
        options=plan.options,
        build_s=round(plan.build_s, 3),
        check=check,
        preprocessing=preprocessing,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_with_facts(target, content, report.to_json())
    return report


def write_with_facts(path: Path, content: bytes, facts: Mapping[str, JsonValue] | None) -> None:
    """Write a file, and what is known of it as JSON into ``<path>.json``: both or neither; without facts it alone.

    Raises:
        WriteError: one of them cannot be written.
    """
    if facts is None:
        write_bytes(path, content)
        return
    with replacing_all(path, sidecar_path(path)) as (partial, partial_facts):
        partial.write_bytes(content)
        partial_facts.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class CompiledEngine:
    """A serialised engine, unchecked, in memory.

    Attributes:
        content: the engine.
        library: the package that built it.
        precision: in its long form.
        inputs, outputs: name -> shape and dtype, as TensorRT read them.
        options: how it was built.
        build_s: seconds.
    """

    content: bytes
    library: Any
    precision: str
    inputs: dict[str, PutFacts]
    outputs: dict[str, PutFacts]
    options: EngineOptions
    build_s: float


def compile_engine(
    onnx_bytes: bytes,
    *,
    precision: str = "float32",
    compute_capabilities: Sequence[str] = (),
    library: str | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    title: str = "engine",
) -> CompiledEngine:
    """Build an engine in memory; arguments and errors as of :func:`build_engine`."""
    precision = canonical_precision(precision)
    trt = import_tensorrt(library)
    capabilities = [compute_capability(trt, text) for text in compute_capabilities]
    digest = hashlib.sha256(onnx_bytes).hexdigest()
    heading = (
        f"layerfold: {title} by {trt.__name__} {trt.__version__}, {precision}, TF32 off, compute capabilities "
        f"{', '.join(compute_capabilities) or 'by default'}, ONNX sha256 {digest}"
    )
    typed_bytes = _typed(onnx_bytes, precision)
    logger = library_logger(trt)
    with _BUILD_LOCK, logging_to(logger, log, heading):
        began = time.perf_counter()
        builder = trt.Builder(logger)
        if builder is None or logger.errors:  # `tensorrt` makes a builder only where a GPU is
            raise ExportError(f"{trt.__name__} cannot build engines on this machine: {logger.last()}")
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later versions know no other kind
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(typed_bytes):
            raise ExportError(f"TensorRT cannot read the ONNX graph: {parser_errors(parser) or logger.last()}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; float32 is to mean float32
        if capabilities:
            config.num_compute_capabilities = len(capabilities)
            for index, capability in enumerate(capabilities):
                config.set_compute_capability(capability, index)
        is_timed = trt.__name__ == "tensorrt"  # RTX times kernels when an engine is first run, not when it is built
        cache = _TimingCache(Path(timing_cache), config) if timing_cache is not None and is_timed else None
        cache_state = None if timing_cache is None else f"not used by {trt.__name__}"
        serialised = builder.build_serialized_network(network, config)
        if serialised is None:
            raise ExportError(f"TensorRT cannot build the engine: {logger.last()}")
        if cache is not None:
            cache.save()
        return CompiledEngine(
            content=bytes(serialised),
            library=trt,
            precision=precision,
            inputs={put.name: _facts(put) for put in map(network.get_input, range(network.num_inputs))},
            outputs={put.name: _facts(put) for put in map(network.get_output, range(network.num_outputs))},
            options={
                "tf32": False,
                "optimization_level": int(config.builder_optimization_level),
                "timing_cache": cache_state if cache is None else cache.state,
            },
            build_s=time.perf_counter() - began,
        )


class _TimingCache:
    """A file of kernel timings; one that does not fit is started over.

    ``state`` says whether it was ``new``, ``reused`` or ``rejected``.
    """

    def __init__(self, path: Path, config: Any) -> None:
        self._path, self._config = path, config
        try:
            stored = read_bytes(path, remedy="name another file") if path.exists() else b""
        except UsageError as error:
            raise ExportError(f"timing_cache={str(path)!r} cannot be read: {error}") from error
        with _no_deprecation():
            cache = config.create_timing_cache(stored)
            is_accepted = cache is not None and config.set_timing_cache(cache, False)
            if not is_accepted:
                config.set_timing_cache(config.create_timing_cache(b""), False)
        self.state = "new" if not stored else "reused" if is_accepted else "rejected"

    def save(self) -> None:
        with _no_deprecation():
            content = bytes(self._config.get_timing_cache().serialize())
        write_bytes(self._path, content)


@contextlib.contextmanager
def _no_deprecation() -> Iterator[None]:
    """Silence: tensorrt_rtx calls its timing caches deprecated, since it has no use for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _typed(onnx_bytes: bytes, precision: str) -> bytes:
    """Return the graph whose own types are the precision: strongly typed networks take nothing else."""
    if precision == "float16" and not is_half(onnx_bytes):
        return to_half(onnx_bytes)
    if precision == "int8" and not has_quantised_nodes(onnx_bytes):
        raise UsageError(
            "precision='int8' needs a graph with QuantizeLinear and DequantizeLinear nodes, and this one "
            "has none; quantise it first with lf.quantise_network, or give --data to layerfold export"
        )
    return symmetric_form(onnx_bytes) if precision == "int8" else onnx_bytes


def _facts(put: Any) -> PutFacts:
    names = {"float": "float32", "half": "float16"}
    name = str(put.dtype).rpartition(".")[2].lower()
    return {"shape": list(put.shape), "dtype": names.get(name, name)}


def _own_version() -> str:
    from layerfold import __version__

    return __version__
