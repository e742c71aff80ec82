"""What importances say where they cannot be estimated, and what is kept for the next run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.data import ImageData
from layerfold.errors import DataError, FinetuneError, UsageError
from layerfold.importance.journal import Estimate, Journal
from layerfold.importance.requests import Request
from tests.torch_cpu.small_training import images, network

ENTRIES = [Request(start=i, end=i + 2, start_act=1, end_act=1) for i in range(30)]


def estimate(method: str, data: ImageData | None = None, **options: Any) -> lf.ImportanceTable:
    model = network().eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    return lf.estimate_importance(model, net, data or images(), method, **{"batch_size": 16, "score": "loss",
                                                                          "progress": False, **options})


@pytest.mark.parametrize("method", ["finetune", "shared", "distill"])
def test_training_that_diverges_names_what_was_trained_and_is_not_kept(method: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    # Adam, which distills, takes a step of the rate itself: its weights overflow in their square.
    said = {"finetune": r"the original network, trained alike: finetuning: .*lower learning_rate=1e\+30",
            "shared": r"the weights shared by 2 entries: finetuning: .*lower learning_rate=1e\+30",
            "distill": r"entry \(0, 2\), method distill: val_loss is (nan|inf); lower learning_rate"}
    with pytest.raises(FinetuneError, match=f"^{said[method]}"):
        estimate(method, learning_rate=1e30, steps=4, journal_path=journal)
    assert len(journal.read_text().splitlines()) == 1


def test_one_image_or_one_class_scores_nothing() -> None:
    with pytest.raises(DataError, match=r"^made up: all images scored \(1\) have label \d"):
        estimate("recalibrate", holdout_images=1)
    one = TensorDataset(torch.randn(9, 3, 8, 8), torch.ones(9, dtype=torch.long))
    with pytest.raises(DataError, match=r"^made up: all images scored \(9\) have label 1"):
        estimate("recalibrate", replace(images(), holdout=one, fingerprint=""))


def test_calibration_label_beyond_the_classes_is_named() -> None:
    labels = torch.arange(64) % 3
    labels[40] = 7
    train = TensorDataset(torch.randn(64, 3, 8, 8), labels)
    fine = images()
    data = ImageData(name="own", num_classes=10, input_shape=(3, 8, 8), train=train, holdout=fine.holdout,
                     test=fine.test)
    with pytest.raises(DataError, match=r"^calibration image \d+: label 7 is outside 0\.\.2"):
        estimate("taylor", data)


def test_epochs_are_steps_over_the_train_split() -> None:
    by_epochs = estimate("finetune", epochs=2)
    assert by_epochs.provenance.options["steps"] == 2 * 64 // 16
    assert by_epochs.entries == estimate("finetune", steps=8).entries
    for steps, epochs in ((1, 1), (None, 0)):
        with pytest.raises(UsageError, match=rf"^epochs={epochs}, steps={steps}: give one of them, at least 1"):
            estimate("finetune", steps=steps, epochs=epochs)


_LITTLE_MEMORY = """
import resource
import sys
from pathlib import Path

import torch
import layerfold as lf
from layerfold.errors import ExecutorError
from tests.torch_cpu.test_importance_failures import estimate, many_images

estimate("recalibrate")  # what is loaded at first use is loaded
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), size + (200 << 20)))
try:
    estimate("recalibrate", many_images(), calibration_images=None)
except ExecutorError as error:
    print(error)
"""


class Many(torch.utils.data.Dataset[Any]):
    """200,000 images, which take 150 MB, and their first feature maps more."""

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((3, 8, 8), float(index % 3)), index % 3


def many_images() -> ImageData:
    fine = images()
    return ImageData(name="many", num_classes=3, input_shape=(3, 8, 8), train=Many(), holdout=fine.holdout,
                     test=fine.test)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_too_little_memory_names_what_to_take_less_of() -> None:
    done = subprocess.run([sys.executable, "-c", _LITTLE_MEMORY], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert done.stdout.startswith("entry (0, 2), method recalibrate: out of memory with calibration_images=None, "
                                  "holdout_images=all, batch_size=16; take fewer")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    journal = Journal(path, {"of": 1})
    for each in ENTRIES:
        journal.add(each, Estimate({"val_loss": 1.0}, 2.0))
    return path


def test_full_disk_while_a_journal_is_opened_costs_no_estimate(kept: Path) -> None:
    before = kept.read_bytes()
    kept.with_name("journal.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Journal(kept, {"of": 1})
    assert kept.read_bytes() == before
    kept.with_name("journal.partial").unlink()
    assert all(Journal(kept, {"of": 1}).get(each) is not None for each in ENTRIES)


def test_journals_of_other_settings_are_all_kept(kept: Path) -> None:
    of_one = kept.read_bytes()
    for number in (2, 3):
        journal = Journal(kept, {"of": number})
        assert not journal.goes_on
        assert journal.get(ENTRIES[0]) is None
        journal.add(ENTRIES[0], Estimate({}, 1.0))
    assert kept.with_name("journal.old").read_bytes() == of_one
    assert [json.loads(line)["of"] for line in kept.with_name("journal.old2").read_text().splitlines()[:1]] == [2]


def test_file_that_is_no_journal_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"\xff\xfe\n")
    assert not Journal(path, {}).goes_on
    assert path.with_name("journal.old").read_bytes() == b"\xff\xfe\n"
