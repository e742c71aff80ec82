"""What ``run.json`` says of a run's settings, and what it meant where an older version left one out.

A default may change from version to version. A run goes on with the settings that it was begun with: so every setting
is written down as it takes effect, and a file that does not say stands for the defaults of the version that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping

from layerfold.data import ImageData
from layerfold.files import JsonObject, JsonValue
from layerfold.profiler.backends import backend_class

# Of versions up to 0.1 (December 2026), which left out a setting that was the default. These numbers are history: where
# a default changes, they stay.
DEFAULTS_OF_FILES_THAT_DO_NOT_SAY: Mapping[str, JsonValue] = {
    "precision": "float32",
    "layout": "nchw",
    "backend_options": {},
    "drop_layers": False,
    "whole_plans": 24,
    "train_device": "cpu",
    "unfreeze": False,
    "keep_frozen": False,
    "calibration_images": None,
}
_FIRST_DEVICES = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "cuda", "torch": "cpu", "torch_tensorrt": "cuda"}
"""By backend; ``backend_device`` of a file that does not say. A backend of another package stays with its first."""
_LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-3}
"""By optimizer, at 128 images per step; ``learning_rate`` of a file that does not say."""
_FINALIST_STEPS, _FINALIST_SHARE = 60, 0.25
"""``finalist_steps`` of a file that does not say, and the share of the finetuning that they may take; else 0."""


def completed(stored: Mapping[str, JsonValue], data: ImageData) -> JsonObject:
    """Return the settings of a ``run.json`` with what it does not say: the defaults of the version that wrote it.

    Args:
        stored: as it was read.
        data: the images of the run; a file of another one is refused by their fingerprint.
    """
    found: JsonObject = {**DEFAULTS_OF_FILES_THAT_DO_NOT_SAY, **stored}
    epochs, batch_size, optimizer = (found.get(name) for name in ("finetune_epochs", "batch_size", "optimizer"))
    has_training = bool(epochs) and data.is_labelled and data.train is not None
    if found.get("importance_method") == "auto":
        found["importance_method"] = "shared" if has_training else "recalibrate"
    if found.get("backend_device") is None:
        found["backend_device"] = _first_device(found.get("backend"))
    if not isinstance(batch_size, int) or not isinstance(epochs, int):
        return found
    if found.get("learning_rate") is None and isinstance(optimizer, str) and optimizer in _LEARNING_RATES:
        found["learning_rate"] = _LEARNING_RATES[optimizer] * batch_size / 128
    if not (has_training and found["whole_plans"]) or found.get("fastest"):
        found["finalist_steps"] = 0  # whatever was asked for, none were
    elif found.get("finalist_steps") is None:
        steps = epochs * len(data.loader("train", batch_size, drop_last=True))
        found["finalist_steps"] = _FINALIST_STEPS if _FINALIST_SHARE * steps >= _FINALIST_STEPS else 0
    return found


def _first_device(backend: JsonValue) -> str | None:
    if not isinstance(backend, str):
        return None
    return _FIRST_DEVICES.get(backend) or backend_class(backend).devices[0]
