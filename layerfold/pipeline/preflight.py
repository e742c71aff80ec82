"""What can be known before any work is refused before any work: settings, model, images and packages."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from layerfold.data import ImageData
from layerfold.errors import DataError, OptionalDependencyError, UsageError
from layerfold.finetune import check_answers, check_device, check_trainable, first_images
from layerfold.graph import Segment
from layerfold.importance import check_method, trains
from layerfold.pipeline.int8 import calibration_images
from layerfold.pipeline.options import CompressOptions
from layerfold.plugins import is_installed

_FEWEST_IMAGES = 2


def check_inputs(model: nn.Module, data: ImageData, options: CompressOptions) -> None:
    """Refuse what a compression would fail on later, in seconds.

    Args:
        model: in eval mode; left as it is.
        data: images of the model's input shape.
        options: settled (:meth:`CompressOptions.settled`).

    Raises:
        UsageError: a device that cannot be used, a model that gives no logits or is frozen.
        DataError: no labels for a score that needs them, no training images, a holdout of one class, more classes than
            the model has.
        DeviceUnavailableError, OptionalDependencyError: what is asked for is not there.
    """
    check_device(options.train_device)
    _check_packages(options)
    _check_images(data, options)
    check_answers(model, first_images(data), num_classes=data.num_classes if data.is_labelled else None)
    if options.finetune_epochs or trains(options.importance_method):
        check_trainable(model, unfreeze=options.unfreeze, keep_frozen=options.keep_frozen)


def check_candidates(candidates: Sequence[Segment], options: CompressOptions) -> None:
    """Refuse limits that leave nothing to choose.

    Args:
        candidates: what the limits leave.
        options: with the limits.

    Raises:
        UsageError: each candidate is one layer as it stands.
    """
    if not any(segment.is_changed for segment in candidates):
        raise UsageError(
            f"max_kernel={options.max_kernel}, max_growth={options.max_growth:g}: no two layers of this network "
            "may be merged within these limits; raise them, or exclude fewer modules"
        )


def _check_images(data: ImageData, options: CompressOptions) -> None:
    if options.finetune_epochs:
        _ = options.finetune  # checks its fields
        count = len(data.split("train"))
        if count < _FEWEST_IMAGES:
            raise DataError(
                f"{data.name}: has {count} image for training; finetuning needs {_FEWEST_IMAGES} or more, "
                "or do without (--no-finetune)"
            )
    check_method(options.importance_method, options.importance_score, data)
    data.check_holdout()
    wanted, (split, count) = options.calibration_images, calibration_images(data, options.quantise)
    if wanted is not None and wanted > count:
        raise UsageError(f"calibration_images={wanted}: there are only {count} images in {split}; ask for fewer")


def _check_packages(options: CompressOptions) -> None:
    missing = [name for name in ("onnx", "onnxscript") if not is_installed(name)]
    if missing:
        raise OptionalDependencyError(f"ONNX export needs {' and '.join(missing)}; run: pip install onnx onnxscript")
    if options.formats is not None and "tensorrt" in options.formats:
        from layerfold.export.trt_library import import_tensorrt

        import_tensorrt()
