"""How well cheap importances rank entries: against finetuning each of them, on CIFAR-10.

    python benchmarks/importance_rank.py                        # both networks, every step; hours on two cores
    python benchmarks/importance_rank.py resnet20 --only reference
    python benchmarks/importance_rank.py resnet20 --only cheap cost plans

The reference finetunes the network of each entry (``--steps`` steps of 128 images); ``cheap`` estimates the same
entries by each other method; ``cost`` times both side by side on a few entries; ``plans`` solves with either table and
finetunes what they choose alike. Entries: all of ResNet-20's; of MobileNetV2's ``--entries``, spread over lengths and
depths, half of them with dropped layers. Resumable: work is kept under ``--work``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from record import ROOT
from scipy.stats import spearmanr
from shorten_cifar10 import NETWORKS, Run

import layerfold as lf
from layerfold.graph import Segment
from layerfold.importance import remove_journal

STEPS = ("reference", "cheap", "cost", "plans")
CHEAP = {
    "taylor": {}, "recalibrate": {}, "distill": {},
}  # fmt: skip
_MAX_KERNEL, _MAX_GROWTH = 7, 4.0
_HOLDOUT, _CALIBRATION = 1000, 512


def entries_of(run: Run, count: int) -> list[Segment]:
    """Return the entries to rank: those that change something, every one or ``count`` of them, spread."""
    norms = lf.layer_norms(run.loaded.module, run.net)
    every = run.net.candidates(max_kernel=_MAX_KERNEL, max_growth=_MAX_GROWTH, layer_norms=norms)
    whole = [each for each in every if each.num_layers > 1 and not each.dropped]
    drops = [each for each in every if each.dropped]
    if len(whole) + len(drops) <= count:
        return whole + drops
    return spread(whole, count - count // 2) + spread(drops, count // 2)


def spread(segments: list[Segment], count: int) -> list[Segment]:
    """Return ``count`` segments, evenly over all, ordered by length and then by depth."""
    ordered = sorted(segments, key=lambda each: (each.num_layers, each.start, each.merged))
    return [ordered[int((index + 0.5) * len(ordered) / count)] for index in range(count)]


class Ranking:
    """One network's estimates by every method."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.run = Run(name, arguments)
        self.entries = entries_of(self.run, arguments.entries)
        self.folder = arguments.work / name / f"rank-{arguments.steps}-steps"
        self.folder.mkdir(parents=True, exist_ok=True)

    def table(self, method: str, score: str, **how: Any) -> lf.ImportanceTable:
        """Return the table by one method, made once."""
        path = self.folder / f"{method}.csv"
        if not path.exists():
            journal = path.with_suffix(".journal")
            lf.estimate_importance(
                self.run.loaded.module, self.run.net, self.run.data, method, candidates=self.entries, score=score,
                fill_slots=False, calibration_images=_CALIBRATION, holdout_images=_HOLDOUT, journal_path=journal,
                model_name=self.run.name, **how,
            ).write(path)
            remove_journal(journal)
        return lf.ImportanceTable.read(path)

    def reference(self) -> lf.ImportanceTable:
        return self.table("finetune", "loss", steps=self.arguments.steps, learning_rate=NETWORKS[self.run.name][1])

    def cheap(self) -> dict[str, dict[str, float]]:
        """Return each method's rank correlation with the reference, by loss and by accuracy."""
        dear, found = self.reference(), {}
        for method, how in CHEAP.items():
            table = self.table(method, "loss", **how)
            found[method] = {"loss": _rank(table, dear, "val_loss"), "seconds": table.provenance.options["seconds"]}
            if all(entry.val_acc is not None for entry in table.entries):
                found[method]["accuracy"] = _rank(table, dear, "val_acc")
        return found


def _rank(one: lf.ImportanceTable, other: lf.ImportanceTable, column: str) -> float:
    assert one.by_key.keys() == other.by_key.keys()
    return float(spearmanr([getattr(entry, column) for entry in one.entries],
                           [getattr(other.by_key[entry.key], column) for entry in one.entries]).statistic)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of the reference, an entry")
    parser.add_argument("--entries", type=int, default=48, metavar="N")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--work", type=Path, default=ROOT / "build/shorten_cifar10", metavar="FOLDER")
    parser.set_defaults(epochs=2, search_epochs=1)  # of the baselines' folder
    arguments = parser.parse_args()
    for name in arguments.networks or ["resnet20", "mobilenetv2_050_cifar"]:
        ranking = Ranking(name, arguments)
        if "reference" in arguments.only:
            ranking.reference()
    return 0


if __name__ == "__main__":
    sys.exit(main())
