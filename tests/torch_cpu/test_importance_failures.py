"""What importances say where they cannot be estimated, and what is kept for the next run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.data import ImageData
from layerfold.errors import DataError, FinetuneError, UsageError, WriteError
from layerfold.importance.journal import Estimate, Journal
from layerfold.importance.requests import Request
from layerfold.importance.sharing import WeightsFile
from tests.torch_cpu.small_training import images, network, no_file_longer_than

ENTRIES = [Request(start=i, end=i + 2, start_act=1, end_act=1) for i in range(30)]


def estimate(method: str, data: ImageData | None = None, **options: Any) -> lf.ImportanceTable:
    model = network().eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    return lf.estimate_importance(
        model, net, data or images(), method, **{"batch_size": 16, "score": "loss", "progress": False, **options}
    )


@pytest.mark.parametrize("method", ["finetune", "shared", "distill"])
def test_training_that_diverges_names_what_was_trained_and_is_not_kept(method: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    # Adam, which distills, takes a step of the rate itself: its weights overflow in their square.
    said = {
        "finetune": r"the original network, trained alike: finetuning: .*lower learning_rate=1e\+30",
        "shared": r"the weights shared by 2 entries: finetuning: .*lower learning_rate=1e\+30",
        "distill": r"entry \(0, 2\), method distill: val_loss is (nan|inf); lower learning_rate",
    }
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
    data = ImageData(
        name="own", num_classes=10, input_shape=(3, 8, 8), train=train, holdout=fine.holdout, test=fine.test
    )
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
resource.setrlimit(resource.RLIMIT_AS, (size + (120 << 20), size + (120 << 20)))
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
    return ImageData(
        name="many", num_classes=3, input_shape=(3, 8, 8), train=Many(), holdout=fine.holdout, test=fine.test
    )


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from /proc")
def test_too_little_memory_names_what_to_take_less_of() -> None:
    done = subprocess.run([sys.executable, "-c", _LITTLE_MEMORY], capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    assert done.stdout.startswith(
        "entry (0, 2), method recalibrate: out of memory with calibration_images=None, "
        "holdout_images=all, batch_size=16; take fewer"
    )


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    journal = Journal(path, {"of": 1})
    for each in ENTRIES:
        journal.add(each, Estimate({"val_loss": 1.0}, 2.0))
    return path


def test_full_disk_costs_no_estimate_and_is_one_line(kept: Path) -> None:
    before = kept.read_bytes()
    with no_file_longer_than(64), pytest.raises(WriteError, match=r"journal: cannot be written \(File too large\)"):
        Journal(kept, {"of": 1})
    assert kept.read_bytes() == before
    assert [each.name for each in kept.parent.iterdir()] == ["journal"]
    journal = Journal(kept, {"of": 1})
    more = Request(start=7, end=9, start_act=1, end_act=0)
    with no_file_longer_than(len(before) + 9), pytest.raises(WriteError, match="run the same command again") as caught:
        journal.add(more, Estimate({"val_loss": 1.0}, 2.0))
    assert "\n" not in str(caught.value)
    again = Journal(kept, {"of": 1})
    assert all(again.get(each) == Estimate({"val_loss": 1.0}, 2.0) for each in ENTRIES)
    assert again.get(more) is None, "half a line is none"


def _journal_with(path: Path, change: Callable[[bytes], bytes]) -> Journal:
    path.write_bytes(change(path.read_bytes()))
    return Journal(path, {"of": 1})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a digit": lambda b: b.replace(b'"val_loss": 1.0', b'"val_loss": 7.0', 1),
    "a sign": lambda b: b.replace(b'"val_loss": 1.0', b'"val_loss":-1.0', 1),
    "the entry": lambda b: b.replace(b'"end": 2', b'"end": 3', 1),
    "the seconds": lambda b: b.replace(b'"seconds": 2.0', b'"seconds": 9.0', 1),
    "a number no float holds": lambda b: b.replace(b'"val_loss": 1.0', b'"val_loss": 1e999', 1),
    "not a number": lambda b: b.replace(b'"val_loss": 1.0', b'"val_loss": NaN', 1),
    "a text": lambda b: b.replace(b'"val_loss": 1.0', b'"val_loss": "1.0"', 1),
    "a list": lambda b: b.replace(b'"scores": {"val_loss": 1.0}', b'"scores": [1.0]', 1),
    "no checksum": lambda b: re.sub(rb', "check": "[0-9a-f]+"', b"", b, count=1),
    "no UTF-8": lambda b: b.replace(b"val_loss", b"val\xffloss", 1),
    "nesting": lambda b: b.replace(b'"scores": {', b'"scores": {"x": ' + b"[" * 50_000 + b"{", 1),
    "nothing": lambda b: b.replace(b'{"entry"', b'\n{"entry"', 1),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_line_that_was_changed_is_no_estimate_and_the_others_stay(name: str, kept: Path) -> None:
    journal = _journal_with(kept, DAMAGES[name])
    good = Estimate({"val_loss": 1.0}, 2.0)
    found = [journal.get(each) for each in ENTRIES]
    assert found == [good if name == "nothing" else None, *[good] * (len(ENTRIES) - 1)]
    assert len(journal._done) == sum(each is not None for each in found)
    assert Journal(kept, {"of": 1})._done == journal._done, "and is written without it"


def test_any_flipped_bit_of_a_journal_changes_no_estimate(kept: Path) -> None:
    whole = kept.read_bytes()
    for place in range(0, len(whole), 101):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        found = Journal(kept, {"of": 1})._done
        assert all(each in ENTRIES and value == Estimate({"val_loss": 1.0}, 2.0) for each, value in found.items())


def test_journal_of_the_version_before_goes_on(kept: Path) -> None:
    older = re.sub(r', "check": "[0-9a-f]+"', "", kept.read_text()).replace('"schema": 3', '"schema": 2')
    kept.write_text(older)
    journal = Journal(kept, {"of": 1})
    assert journal.goes_on
    assert all(journal.get(each) is not None for each in ENTRIES)
    assert '"check"' in kept.read_text()


@pytest.mark.parametrize("place", ["a folder", "a pipe"])
def test_journal_that_is_no_file_is_named(place: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    {"a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path)}[place]()
    with pytest.raises(UsageError, match=rf"journal: is {place}, .*move it away"):
        Journal(path, {"of": 1})


def test_shared_weights_that_were_changed_are_not_read(tmp_path: Path) -> None:
    file = WeightsFile(tmp_path / "weights")
    file.write({"a": torch.arange(100.0), "b": torch.ones(3, 2)[:, 0]})
    assert torch.equal(file.read()["a"], torch.arange(100.0))
    whole = file.path.read_bytes()
    for place in (len(whole) - 5, len(whole) - 300, 12, 0):
        file.path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        assert not file.is_whole
        with pytest.raises(UsageError, match="missing or damaged"):
            file.read()
    file.path.write_bytes(whole[:200])
    assert not file.is_whole
    file.path.unlink()
    assert not file.is_whole


def test_shared_weights_that_were_changed_are_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    expected = estimate("shared", steps=1, batch_size=16, journal_path=path)
    weights = path.with_name("journal.weights")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 64
    weights.write_bytes(content)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # one entry is still to do
    found = estimate("shared", steps=1, batch_size=16, journal_path=path)
    assert [each.importance for each in found.entries] == [each.importance for each in expected.entries]


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
