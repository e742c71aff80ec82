"""Export a network to ONNX and to TensorRT engines."""

from layerfold.export.network import ExportReport, export_network
from layerfold.export.onnx import OnnxCheck, check_onnx, export_onnx
from layerfold.export.tensorrt import EngineReport, build_engine, half_precision_onnx

__all__ = [
    "EngineReport",
    "ExportReport",
    "OnnxCheck",
    "build_engine",
    "check_onnx",
    "export_network",
    "export_onnx",
    "half_precision_onnx",
]
