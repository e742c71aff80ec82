"""Build TensorRT engines with ``tensorrt_rtx``, which needs no GPU for it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerfold.errors import ExportError, OptionalDependencyError, UsageError, nearest_names

PRECISIONS = ("fp32", "fp16")
_SCHEMA = 1
_BUILD_LOCK = threading.Lock()
_loggers: list[Any] = []


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What was built; also the JSON beside the engine.

    Attributes:
        engine_path: the engine file.
        engine_bytes: its size.
        precision: ``fp32`` (TF32 off) or ``fp16`` (inputs and outputs stay float32).
        compute_capabilities: those it was built for; empty for the builder's own choice, any RTX GPU.
        inputs, outputs: name -> shape.
        onnx_sha256: of the ONNX bytes it was built from.
        tensorrt_rtx: version of the package; an engine runs only with the same one.
        date: ISO 8601, UTC.
    """

    engine_path: str
    engine_bytes: int
    precision: str
    compute_capabilities: tuple[str, ...]
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    onnx_sha256: str
    tensorrt_rtx: str
    date: str
    schema: int = _SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Return what the JSON file holds: the path is its name only, so that both files can be moved."""
        return {**asdict(self), "engine_path": Path(self.engine_path).name}


def build_engine(
    onnx_bytes: bytes,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    compute_capabilities: Sequence[str] = (),
) -> EngineReport:
    """Build an engine and write it, with a JSON file beside it (``<name>.json``).

    Args:
        onnx_bytes: a serialised ONNX model with static shapes and float32 weights.
        path: the engine file; its folder is made.
        precision: ``fp32``, with TF32 off, or ``fp16``: weights and feature maps in half precision.
        compute_capabilities: GPUs to build for, for example ``("8.6", "12.0")``; empty for the builder's default.

    Raises:
        UsageError: unknown precision or compute capability.
        OptionalDependencyError: tensorrt_rtx is not installed.
        ExportError: the parser or the builder refuses the graph; names the node where it says so.
    """
    trt = _import_tensorrt()
    if precision not in PRECISIONS:
        raise UsageError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}")
    capabilities = [_capability(trt, text) for text in compute_capabilities]
    digest = hashlib.sha256(onnx_bytes).hexdigest()
    if precision == "fp16":
        onnx_bytes = half_precision_onnx(onnx_bytes)
    with _BUILD_LOCK:
        logger = _logger(trt)
        logger.errors.clear()
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(onnx_bytes):
            raise ExportError(f"TensorRT cannot read the ONNX graph: {_parser_errors(parser) or logger.last()}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; float32 is to mean float32
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(capability, index)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise ExportError(f"TensorRT cannot build the engine: {logger.last()}")
        content = bytes(engine)
        inputs = {put.name: tuple(put.shape) for put in map(network.get_input, range(network.num_inputs))}
        outputs = {put.name: tuple(put.shape) for put in map(network.get_output, range(network.num_outputs))}
    report = EngineReport(
        engine_path=str(path), engine_bytes=len(content), precision=precision,
        compute_capabilities=tuple(compute_capabilities), inputs=inputs, outputs=outputs, onnx_sha256=digest,
        tensorrt_rtx=trt.__version__, date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.with_name(target.name + ".json").write_text(json.dumps(report.to_json(), indent=2) + "\n", "utf-8")
    except OSError as error:
        raise ExportError(f"path={str(path)!r} cannot be written: {error.strerror}; choose another place") from error
    return report


def half_precision_onnx(onnx_bytes: bytes) -> bytes:
    """Return the model with weights and feature maps in float16; inputs and outputs stay float32."""
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise OptionalDependencyError("precision='fp16' needs onnx and onnxruntime to convert the graph") from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each weight that rounds to the smallest half
        model = convert_float_to_float16(onnx.load_from_string(onnx_bytes), keep_io_types=True)
    return bytes(model.SerializeToString())


def _import_tensorrt() -> Any:
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:  # OSError: the package is there, a library it loads is not
        raise OptionalDependencyError(
            f"TensorRT engines need the package tensorrt_rtx ({error}); run: pip install 'layerfold[tensorrt]'"
        ) from error
    return tensorrt_rtx


def _capability(trt: Any, text: str) -> Any:
    names = {
        f"{name[2:-1]}.{name[-1]}": name for name in dir(trt.ComputeCapability) if name.startswith("SM")
    }
    if text not in names:
        raise UsageError(
            f"compute_capability={text!r} is not supported by this TensorRT; choose from "
            f"{', '.join(sorted(names, key=float))}{nearest_names(text, names)}"
        )
    return getattr(trt.ComputeCapability, names[text])


def _parser_errors(parser: Any) -> str:
    parts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"node {error.node_name()}: " if error.node_name() else ""
        parts.append(f"{node}{' '.join(error.desc().split())}")
    return "; ".join(parts)


def _logger(trt: Any) -> Any:
    """Return the process's only logger: TensorRT keeps the first one it is given."""
    if not _loggers:

        class _Collector(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.errors.append(" ".join(message.split()))

            def last(self) -> str:
                return self.errors[-1] if self.errors else "no reason given"

        _loggers.append(_Collector())
    return _loggers[0]
