"""Accuracy of plans in int8 on CIFAR-10: in float32, quantised after training, and trained for int8 in two ways.

    python benchmarks/accuracy/quantised_training.py                       # both networks, all plans; many hours
    python benchmarks/accuracy/quantised_training.py resnet20 --plans 1.4 --ways float ptq --epochs 10 --seeds 0 1 2
    python benchmarks/accuracy/quantised_training.py --only compare        # the record, of what is done so far
    python benchmarks/accuracy/quantised_training.py resnet20 --plans 1.4 --steps 8 --test-images 64   # smoke

Plans: ``original``, a speed-up whose solution ``accuracy_cifar10.py`` has chosen (``--kept``), or a solution's file
(such as one that ``layerfold solve`` chose by an int8 table). Ways, each with the same number of steps in all, the same
teacher and seed: ``float`` (in float32), ``ptq`` (that network, quantised after training, in ONNX Runtime), ``train``
(the last ``--int8-share`` of the steps rounded, in train form) and ``deploy`` (likewise, merged first). What is trained
for int8 is scored as its quantised ONNX file in ONNX Runtime too.
Resumable: each network that is done is a file under ``--work``, and a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))
import numpy as np
import torch
from cifar_runs import NETWORKS, Run
from record import RESULTS, ROOT, write_record
from torch import fx
from torch.utils.data import Subset

import layerfold as lf
from layerfold.export import export_onnx
from layerfold.finetune import evaluate_network, finetune_merged, float_checkpoint
from layerfold.merge import ACTIVATION_RANGES, Recipe, load_form, save_form
from layerfold.qat import fake_quantised, quantised_onnx
from layerfold.quantise import calibrate, quantise_graph

WAYS = ("float", "ptq", "train", "deploy")
STEPS = ("finetune", "compare")
_PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "numpy")
_BATCH = 50
"""Images in one pass of the quantised files: a file has fixed shapes."""
_CALIBRATION = 500


class Plan:
    """One plan of one network, and every way of bringing it to int8.

    Args:
        run: the network.
        name: ``original``, a speed-up or the file of a solution.
        arguments: of the command line.
    """

    def __init__(self, run: Run, name: str, arguments: argparse.Namespace) -> None:
        self.run, self.name, self.arguments = run, name, arguments
        length = f"{arguments.epochs}-epochs" if arguments.steps is None else f"{arguments.steps}-steps"
        self.folder: Path = arguments.work.resolve() / run.name / f"{Path(name).stem if '/' in name else name}-{length}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def solution(self) -> lf.Solution:
        net = self.run.net
        if self.name == "original":
            return lf.Solution(act_pos=list(net.original_act_pos), merge_pos=list(range(1, len(net.layers) + 1)))
        path = Path(self.name)
        if path.suffix == ".json":
            return lf.Solution.read(path)
        kept = self.arguments.kept / self.run.name / "onnxruntime-3-epochs" / f"layerfold-by-shared-{self.name}.json"
        found = json.loads(kept.read_text())
        if not found["reached"]:
            sys.exit(f"error: {kept}: this speed-up is not reached; name another plan")
        return lf.Solution.from_json(found["solution"])

    def result(self, way: str, seed: int) -> dict[str, Any] | None:
        """Return what is known of a way; None where it was not done."""
        path = self._file(way, seed, ".json")
        return json.loads(path.read_text()) if path.exists() else None

    def finish(self, way: str, seed: int) -> None:
        """Do what is missing of a way."""
        if self.result(way, seed) is None:
            found = self._quantised_after(seed) if way == "ptq" else self._trained(way, seed)
            self._file(way, seed, ".json").write_text(json.dumps(found) + "\n")
            print(f"{self.run.name}, {self.name}, {way}, seed {seed}: {found}", file=sys.stderr, flush=True)

    def _file(self, way: str, seed: int, suffix: str) -> Path:
        return self.folder / f"{way}-{seed}{suffix}"

    def _form(self, way: str, seed: int) -> fx.GraphModule:
        """Return a trained network: in deploy form for the way ``deploy``, else in train form."""
        path = self._file(way, seed, ".safetensors")
        if not path.exists():
            self._train(way, seed, path)
        return load_form(path, self.run.loaded.module).module

    def _train(self, way: str, seed: int, path: Path) -> None:
        arguments, original = self.arguments, self.run.loaded.module
        form = lf.build_train_form(original, self.run.net, self.solution)
        options = lf.FinetuneOptions(
            epochs=arguments.epochs,
            steps=arguments.steps,
            learning_rate=arguments.learning_rate or NETWORKS[self.run.name][1],
            batch_size=arguments.batch_size,
            precision="float32" if way == "float" else "int8",
            int8_share=arguments.int8_share,
            int8_rate=arguments.int8_rate,
            seed=seed,
        )
        run = lf.RunOptions(
            checkpoint_path=self._file(way, seed, ".checkpoint"),
            score_holdout=False,
            device=arguments.train_device,
            description=f"{self.run.name}, {self.name}, {way}, seed {seed}",
        )
        if way == "deploy":
            form, _ = finetune_merged(form, self.run.data, options, teacher=self.run.teacher, run=run)
        else:
            lf.finetune_network(form, self.run.data, options, teacher=self.run.teacher, run=run)
        recipe = Recipe(model="", input_shape=self.run.untrained.input_shape, solution=self.solution)
        save_form(form, path, kind="deploy" if way == "deploy" else "train", recipe=recipe)
        assert run.checkpoint_path is not None
        for each in (Path(run.checkpoint_path), float_checkpoint(run.checkpoint_path)):
            each.unlink(missing_ok=True)

    def _trained(self, way: str, seed: int) -> dict[str, Any]:
        form = self._form(way, seed)
        if way == "float":
            return {"accuracy_pct": evaluate_network(form, self._test).accuracy_pct}
        merged = form if way == "deploy" else lf.merge_network(form)
        in_torch = evaluate_network(fake_quantised(form), self._test).accuracy_pct
        found = self._accuracy_of(quantised_onnx(merged, self._images[:_BATCH]))
        return {"accuracy_pct": found, "in_torch_pct": in_torch, "num_ranges": len(form.meta[ACTIVATION_RANGES])}

    def _quantised_after(self, seed: int) -> dict[str, Any]:
        merged = lf.merge_network(self._form("float", seed))
        onnx_bytes = export_onnx(merged, self._images[:_BATCH])
        loader = self.run.data.loader("train", _BATCH, limit=_CALIBRATION)
        options = lf.QuantiseOptions(calibration_images=_CALIBRATION)
        ranges = calibrate(onnx_bytes, (images.numpy() for images, _ in loader), options)
        return {"accuracy_pct": self._accuracy_of(quantise_graph(onnx_bytes, ranges, options))}

    @cached_property
    def _test(self) -> Subset[Any]:
        split: Any = self.run.data.split("test")
        return Subset(split, range(self.arguments.test_images // _BATCH * _BATCH))

    @cached_property
    def _images(self) -> torch.Tensor:
        return torch.stack([self._test[index][0] for index in range(len(self._test))])

    def _accuracy_of(self, onnx_bytes: bytes) -> float:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: each.numpy()})[0].argmax(1) for each in self._images.split(_BATCH)]
        labels = np.array([self._test[index][1] for index in range(len(self._test))])
        return float((np.concatenate(found) == labels).mean() * 100)


def rows_of(plan: Plan, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each way of which something is done: the mean over the seeds, and each."""
    rows = []
    for way in arguments.ways:
        found = {seed: known for seed in arguments.seeds if (known := plan.result(way, seed)) is not None}
        if found:
            each = [known["accuracy_pct"] for known in found.values()]
            rows.append({"plan": plan.name, "way": way, "accuracy_pct": float(np.mean(each)), "seeds": found})
    return rows


def print_rows(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the table of one network."""
    print(f"\n{name}\n{'plan':<12}{'way':<9}{'accuracy':>10}{'less than float':>17}{'seeds':>7}")
    of_float = {row["plan"]: row["accuracy_pct"] for row in rows if row["way"] == "float"}
    for row in rows:
        lost = of_float.get(row["plan"], float("nan")) - row["accuracy_pct"]
        print(f"{row['plan']:<12}{row['way']:<9}{row['accuracy_pct']:>8.2f} %{lost:>17.2f}{len(row['seeds']):>7}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = ("mobilenetv2_050_cifar", "resnet20")
    parser.add_argument("networks", nargs="*", choices=[*names, []], metavar="NETWORK", help=", ".join(names))
    parser.add_argument("--plans", nargs="+", default=["original", "1.2", "1.4", "1.7"], metavar="PLAN")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--epochs", type=int, default=10, metavar="N", help="of each training")
    parser.add_argument("--steps", type=int, metavar="N", help="of each training, in place of epochs")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="(default: the network's)")
    parser.add_argument("--int8-share", type=float, default=lf.FinetuneOptions().int8_share, metavar="X")
    parser.add_argument("--int8-rate", type=float, default=lf.FinetuneOptions().int8_rate, metavar="X")
    parser.add_argument("--test-images", type=int, default=10_000, metavar="N")
    parser.add_argument("--train-device", default="cpu", metavar="NAME")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--work", type=Path, default=ROOT / "build/quantised_training", metavar="FOLDER")
    parser.add_argument(
        "--kept", type=Path, default=RESULTS / "accuracy_cifar10", metavar="FOLDER", help="of choices by speed-up"
    )
    parser.add_argument("--record", default="quantised_training", metavar="NAME", help="of the record")
    parser.set_defaults(search_epochs=1, backend="onnxruntime", device=None)  # of cifar_runs.py
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.networks or names:
        run = Run(name, arguments)
        plans = [Plan(run, each, arguments) for each in arguments.plans]
        if "finetune" in arguments.only:
            for seed in arguments.seeds:
                for plan in plans:
                    for way in arguments.ways:
                        plan.finish(way, seed)
        if "compare" in arguments.only:
            results[name] = [row for plan in plans for row in rows_of(plan, arguments)]
            print_rows(name, results[name])
    if results:
        fields = ("epochs", "steps", "batch_size", "learning_rate", "int8_share", "int8_rate", "test_images")
        write_record(arguments.record, results, {each: getattr(arguments, each) for each in fields}, packages=_PACKAGES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
