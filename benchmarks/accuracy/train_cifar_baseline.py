"""Train one of the CIFAR-10 baselines that the records compress, and write its weights as safetensors.

    python benchmarks/accuracy/train_cifar_baseline.py mobilenetv2_050_cifar --data parquet:../shared/data/cifar10 \\
        --epochs 10 -o baselines/

With ``--weights`` training starts from published weights (ResNet-20: two epochs at a low rate). A run that was
interrupted goes on where it stopped; a finished one is not repeated. Accuracy is that of the test split.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

# Two threads that wait for each other by spinning stall when another process wants the core; read at torch's import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from layerfold.errors import LayerfoldError

_FACTORIES = Path(__file__).resolve().parents[1] / "lib" / "cifar_resnet.py"
_MODELS = ("resnet20", "resnet56", "mobilenetv2_050_cifar")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a CIFAR-10 baseline and write safetensors (resumable).")
    parser.add_argument("model", choices=_MODELS, help="a factory of benchmarks/lib/cifar_resnet.py")
    parser.add_argument("--data", required=True, metavar="DATA", help="for example parquet:../shared/data/cifar10")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="start from these weights (default: random)")
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="optimizer steps in all, in place of --epochs")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="adamw")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="highest (default: suits the optimizer)")
    parser.add_argument("--label-smoothing", type=float, default=0.0, metavar="S")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, ...")
    parser.add_argument("--threads", type=int, metavar="N", help="torch threads (default: all cores)")
    parser.add_argument("-o", "--output", type=Path, default=Path("baselines"), metavar="FOLDER")
    return parser.parse_args()


def train_baseline(arguments: argparse.Namespace) -> Path:
    """Train, write ``<model>.safetensors`` and ``<model>.json`` into the output folder, return the first."""
    import torch
    from safetensors.torch import save_file

    from layerfold.data import open_data
    from layerfold.finetune import evaluate_network, finetune_network
    from layerfold.models import load_model

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaded = load_model(f"{_FACTORIES}:{arguments.model}", weights=arguments.weights)
    data = open_data(
        arguments.data,
        input_shape=loaded.input_shape,
        mean=loaded.mean,
        std=loaded.std,
        interpolation=loaded.interpolation,
        crop_pct=loaded.crop_pct,
        num_classes=loaded.num_classes,
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    weights_path: Path = arguments.output / f"{arguments.model}.safetensors"
    before = evaluate_network(loaded.module, data.test)
    print(f"before: {before.accuracy_pct:.2f} % of {before.num_images} test images", file=sys.stderr)
    began = time.monotonic()
    report = finetune_network(
        loaded.module.to(memory_format=torch.channels_last),
        data,
        epochs=arguments.epochs,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate,
        label_smoothing=arguments.label_smoothing,
        mixed_precision=arguments.mixed_precision,
        seed=arguments.seed,
        device=arguments.device,
        checkpoint_path=arguments.output / f"{arguments.model}.training.pt",
        description=f"Training {arguments.model}",
    )
    after = evaluate_network(loaded.module, data.test)
    save_file({key: value.contiguous() for key, value in loaded.module.state_dict().items()}, weights_path)
    record = {
        "model": loaded.source.rpartition(":")[2],
        "weights_before": loaded.weights_sha256,
        "test_accuracy_pct_before": before.accuracy_pct,
        "test_accuracy_pct": after.accuracy_pct,
        "test_loss": after.loss,
        "this_run_s": round(time.monotonic() - began, 1),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": arguments.device,
        "data": data.describe(),
        "training": report.as_dict(),
    }
    weights_path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(
        f"{weights_path}: {after.accuracy_pct:.2f} % of {after.num_images} test images, {report.steps} steps, "
        f"{report.seconds:.0f} s"
    )
    return weights_path


def main() -> int:
    try:
        train_baseline(parse_arguments())
    except LayerfoldError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
