"""The ONNX graph of one merged segment, as it is measured."""

from __future__ import annotations

from layerfold.graph.description import Residual, Segment
from layerfold.graph.specs import ActivationSpec, Shape
from layerfold.profiler.graphs.writer import OnnxWriter


def write_segment(
    writer: OnnxWriter,
    value: str,
    segment: Segment,
    sources: dict[int, str],
    activation: ActivationSpec | None,
) -> str:
    """Append a segment: its merged conv, the residuals that stay open, the activation at its end.

    Args:
        writer: the graph.
        value: the feature map at ``segment.start``.
        segment: what to write.
        sources: position -> feature map, for each open residual's ``src``.
        activation: what stands at ``segment.end``.

    Returns:
        The feature map at ``segment.end``.
    """
    where = f"segment ({segment.start}, {segment.end})"
    result = writer.linear(value, segment.conv)
    for residual in segment.open_residuals:
        result = writer.add(result, write_shortcut(writer, sources[residual.src], residual))
    return writer.activation(result, activation, segment.conv.out_channels, where)


def write_shortcut(writer: OnnxWriter, value: str, residual: Residual) -> str:
    """Append a residual's shortcut convs (none for an identity); return what is added."""
    for conv in residual.shortcut:
        value = writer.linear(value, conv)
    return value


def segment_onnx(segment: Segment, *, batch: int = 1, dtype: str = "float32", seed: int = 0) -> bytes:
    """Return the serialised ONNX graph of one segment alone.

    Its inputs are ``x`` and, for each open residual, ``source_<src>``; its output is the feature map at the end,
    after the original activation. Weights are random.

    Args:
        segment: layers start+1..end as one conv.
        batch: images in one forward pass.
        dtype: ``float32`` or ``float16``.
        seed: of the weights.

    Raises:
        ExportError: an activation that has no ONNX form here.
    """
    writer = OnnxWriter(dtype=dtype, batch=batch, seed=seed)
    value = writer.add_input("x", segment.input_shape)
    sources = {
        residual.src: writer.add_input(f"source_{residual.src}", residual.source_shape)
        for residual in segment.open_residuals
    }
    output = write_segment(writer, value, segment, sources, segment.activation)
    writer.add_output(output, segment.output_shape)
    return writer.model_bytes()


def overhead_onnx(shapes: tuple[Shape, ...], *, batch: int = 1, dtype: str = "float32") -> bytes:
    """Return a graph with these inputs that does next to nothing: what calling a session costs by itself."""
    writer = OnnxWriter(dtype=dtype, batch=batch)
    channels = shapes[0][0]
    for index, shape in enumerate(shapes):
        writer.add_input(f"x{index}", shape)
    zero = writer.constant(0.0)
    # one pixel of one image: the same call and the same inputs, no work to speak of
    corner = [writer.integers([0, 0, 0]), writer.integers([1, 1, 1]), writer.integers([0, 2, 3])]
    output = writer.node("Add", [writer.node("Slice", ["x0", *corner]), zero])
    writer.outputs.append(writer.value_info(output, (1, channels, 1, 1)))
    return writer.model_bytes()
