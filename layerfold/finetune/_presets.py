"""Published settings by name."""

from __future__ import annotations

from dataclasses import replace

from layerfold.errors import UsageError, nearest_names
from layerfold.options.finetune import FinetuneOptions

_PAPER = FinetuneOptions(
    batch_size=256,
    optimizer="sgd",
    weight_decay=1e-5,
    warmup=0.0,
    schedule="cosine",
    grad_clip_norm=None,
    distillation_weight=0.0,
    temperature=1.0,
)
_PRESETS = {
    "mobilenetv2-1.0": replace(_PAPER, epochs=180, learning_rate=0.05),
    "mobilenetv2-1.4": replace(
        _PAPER,
        epochs=180,
        learning_rate=0.1,
        label_smoothing=0.1,
        augment="rand-m5-mstd0.5-inc1",
        random_erasing=0.25,
        grad_clip_norm=5.0,
    ),
    "vgg19": replace(_PAPER, epochs=20, learning_rate=0.01),
}
PRESETS = tuple(_PRESETS)


def preset(name: str) -> FinetuneOptions:
    """Return the settings with which Kim et al. finetuned a network on ImageNet.

    All: SGD with Nesterov momentum 0.9, 256 images per step, cosine rate from the first step, random resized crops and
    mirroring, no teacher. With one (``distillation_weight=0.3``; for MobileNetV2 only) they distilled at temperature 1.

    ================  ======  ====  ===============================================================================
    name              epochs  rate  beside that
    ================  ======  ====  ===============================================================================
    mobilenetv2-1.0   180     0.05
    mobilenetv2-1.4   180     0.1   RandAugment (m5), random erasing 0.25, label smoothing 0.1, gradients clipped at 5
    vgg19             20      0.01
    ================  ======  ====  ===============================================================================

    Weight decay is theirs, 0.00001, but on the weights of convs and linear layers only; they had it on all. They kept
    the best epoch by the validation images; ``keep`` is left at ``last`` here. Neither an average of the weights nor a
    warm-up is among their settings.

    Source: Kim et al., *Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming* (ICML 2023,
    arXiv 2301.12187). Epochs, rates and augmentation as the commands of its repository
    (snu-mllab/Efficient-CNN-Depth-Compression: README.md, config/arguments.py, exps/main.py) set them; crop, policy,
    erasing and clipping as in the copy of its code in snu-mllab/LayerMerge (utils/loaders.py, utils/train.py).

    Raises:
        UsageError: no such name.
    """
    if name not in _PRESETS:
        raise UsageError(f"preset {name!r}: must be one of {', '.join(PRESETS)}{nearest_names(name, PRESETS)}")
    return _PRESETS[name]
