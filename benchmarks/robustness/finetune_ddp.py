"""Two processes (gloo, CPU) against one, with the same batches: the loss curves, and what rounding alone does to them.

    python benchmarks/robustness/finetune_ddp.py [--steps 16] [--batch-size 32]

ResNet-20 in train form (its first block merged) on CIFAR-10 images, from the published weights, with augmentation,
mixup, CutMix, label smoothing, an average of the weights and the original as teacher. Every epoch is one step, so that
the history holds the loss of each step. Networks of float32 and of float64 are trained in one process and in processes
that torchrun starts. Training magnifies differences, however small: a run whose weights begin 1e-7 away from another's
says by how much. Ends 1 unless the curves of the training loss differ by less than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
from cifar_part import write_part
from record import ROOT, shared_path, write_record

_LARGEST = 1e-4
_DTYPES = ("float32", "float64")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=16, help="in all, each an epoch of its own")
    parser.add_argument("--batch-size", type=int, default=32, help="over all processes")
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--worker", metavar="JSON", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        train_all(**json.loads(args.worker))
        return 0
    settings = {name: value for name, value in vars(args).items() if name != "worker"}
    results = compare(**settings)
    write_record("finetune_ddp", results, settings, packages=("torch", "timm", "accelerate"))
    return int(not results["passed"])


def compare(*, steps: int, batch_size: int, learning_rate: float, processes: int) -> dict[str, Any]:
    """Return the curves and their differences."""
    curves: dict[str, Any] = {}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        # Of what is there one tenth is the holdout.
        data = write_part(Path(folder) / "data", train=batch_size * 10 // 9 + 1)
        for name, launcher, shifts in (("one", [], [0.0, 1e-7]), ("several", launch, [0.0])):
            path = Path(folder) / f"{name}.json"
            work = {
                "path": str(path),
                "data": data,
                "shifts": shifts,
                "steps": steps,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
            }
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            command = [sys.executable, *launcher, __file__, "--worker", json.dumps(work)]
            subprocess.run(command, check=True, env=environment)
            curves[name] = json.loads(path.read_text())
    found: dict[str, Any] = {}
    for dtype in _DTYPES:
        one = curves["one"][f"{dtype}, shift 0"]
        for name, other in (
            ("several", curves["several"][f"{dtype}, shift 0"]),
            ("shifted", curves["one"][f"{dtype}, shift 1e-07"]),
        ):
            found[f"{dtype}_largest_difference_{name}"] = max(
                abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True)
            )
    found["passed"] = all(found[f"{dtype}_largest_difference_several"] < _LARGEST for dtype in _DTYPES)
    return {**found, "curves": curves}


def train_all(path: str, shifts: list[float], **settings: Any) -> None:
    """Train as one of the processes, in each precision; the first process writes the losses."""
    import torch

    from layerfold.finetune import ending_together, is_main_process

    torch.set_num_threads(1)
    with ending_together():
        found = {f"{dtype}, shift {shift:g}": train(dtype, shift, **settings) for dtype in _DTYPES for shift in shifts}
    if is_main_process():
        Path(path).write_text(json.dumps(found))


def train(dtype: str, shift: float, *, data: str, steps: int, batch_size: int, learning_rate: float) -> dict[str, Any]:
    """Return the losses of a run."""
    import torch
    from torch import nn

    import layerfold as lf
    from layerfold.models import load_model

    class InPrecision(nn.Module):
        """A network that computes in a dtype of its own, of float32 images."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module.to(getattr(torch, dtype))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.module(images.to(getattr(torch, dtype)))
            return logits

    loaded = load_model(
        f"{ROOT / 'benchmarks/lib/cifar_resnet.py'}:resnet20",
        weights=shared_path() / "checkpoints/resnet20-12fca82f.th",
    )
    images = lf.open_data(
        data,
        input_shape=loaded.input_shape,
        mean=loaded.mean,
        std=loaded.std,
        interpolation=loaded.interpolation,
        crop_pct=1.0,
        num_classes=10,
    )
    net = lf.trace_network(loaded.module, torch.zeros(1, 3, 32, 32))
    first = net.residuals[0]
    stops = tuple(layer.index for layer in net.layers if not first.src < layer.index < first.dst)
    solution = lf.Solution(act_pos=stops, merge_pos=stops)
    student = InPrecision(lf.build_train_form(loaded.module, net, solution))
    if shift:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter *= 1 + shift * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    report = lf.finetune_network(
        student,
        images,
        teacher=InPrecision(loaded.module),
        epochs=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mixup=0.2,
        cutmix=1.0,
        label_smoothing=0.1,
        ema_decay=0.99,
        progress=False,
    )
    return {
        "losses": [row.train_loss for row in report.history],
        "holdout_losses": [row.holdout_loss for row in report.history],
        "seconds": round(report.seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
