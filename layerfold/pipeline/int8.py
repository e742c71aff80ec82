"""What a compression in int8 does besides: networks are quantised after training, and scored as their files compute.

Everything before the export is done in float32, but for latencies, which are those of quantised networks throughout
(``layerfold.profiler.backends.to_time``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from layerfold.data import ImageData
from layerfold.export import check_onnx, export_onnx
from layerfold.export.engine import write_with_facts
from layerfold.export.network import ExportReport, engine_of
from layerfold.files import write_bytes
from layerfold.options import ExportOptions, QuantiseOptions
from layerfold.pipeline.equality import MOST_DIFFERENCE
from layerfold.pipeline.outcomes import Exported, Quantised
from layerfold.quantise import QuantisedNetwork, quantised_network

_BATCH = 50


def calibration_images(data: ImageData, options: QuantiseOptions) -> tuple[str, int]:
    """Return the split whose images calibrate, and how many of them do."""
    split = "holdout" if data.train is None else "train"
    return split, min(options.images_at_most, len(data.split(split)))


def quantise_with(onnx_bytes: bytes, data: ImageData, options: QuantiseOptions) -> QuantisedNetwork:
    """Quantise a float32 network on training images, or those of the holdout where there are none."""
    split, limit = calibration_images(data, options)
    return quantised_network(onnx_bytes, data.loader(split, _BATCH, limit=limit), options)


def export_int8(
    merged: nn.Module,
    original_onnx: bytes,
    folder: Path,
    formats: Sequence[str],
    *,
    images: Sequence[Tensor],
    data: ImageData,
    quantise: QuantiseOptions,
    options: ExportOptions,
) -> Exported:
    """Write ``model.onnx`` and ``original-int8.onnx``, each one QDQ file, and the engine of the first if asked for.

    Args:
        merged: the network in deploy form.
        original_onnx: the original in float32.
        folder: where they go.
        formats: out of ``onnx`` and ``tensorrt``.
        images: batches [N, C, H, W] of one shape, which the files have, and on which the float32 one must compute what
            the module does.
        data: its training images calibrate.
        quantise, options: how.

    Raises:
        ExportError: the float32 file computes something else than its module.
        DataError, UsageError: of the images; says what is wrong with them.
    """
    onnx_bytes = export_onnx(merged, images[0])
    checks = [check_onnx(onnx_bytes, merged, batch, MOST_DIFFERENCE) for batch in images]
    path = folder / f"{options.name}.onnx"
    network, original = (quantise_with(each, data, quantise) for each in (onnx_bytes, original_onnx))
    facts = None if options.preprocessing is None else {"preprocessing": dict(options.preprocessing)}
    write_bytes(folder / "original-int8.onnx", original.onnx_bytes)
    write_with_facts(path, network.onnx_bytes, facts)
    engine, skipped = engine_of(network.onnx_bytes, path, formats, options)
    worst = max(checks, key=lambda check: check.max_rel)
    return Exported.of(
        ExportReport(onnx_path=path, check=worst, engine=engine, skipped=skipped),
        quantised=Quantised.of(network),
        quantised_original=Quantised.of(original),
    )
