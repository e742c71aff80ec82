"""Export a network to ONNX and to TensorRT engines."""

from layerfold.export.onnx import OnnxCheck, check_onnx, export_onnx

__all__ = ["OnnxCheck", "check_onnx", "export_onnx"]
