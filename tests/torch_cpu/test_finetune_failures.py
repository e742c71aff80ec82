"""Training that cannot go on says why, and what is kept is good."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from layerfold.data import ImageData
from layerfold.errors import DataError, FinetuneError, UsageError
from layerfold.finetune import _checkpoint
from layerfold.finetune._checkpoint import mark_diverged
from layerfold.options import FinetuneOptions
from tests.torch_cpu.small_training import (
    Interrupt,
    images,
    interrupted_after,
    is_same,
    network,
    no_file_longer_than,
    train,
)


def spoilt(at: int) -> ImageData:
    """Return images of which one is no number."""
    fine = images(256)
    pictures, labels = fine.train._dataset.tensors
    pictures = pictures.clone()
    pictures[at] = 3e38  # what a conv makes of it is infinite; NaN itself is refused as data
    return replace(fine, train=TensorDataset(pictures, labels), fingerprint="")


def test_loss_that_is_no_number_gives_the_step_before_back_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    model = network()
    with pytest.raises(FinetuneError) as caught:
        train(model, spoilt(100), checkpoint_path=path, checkpoint_every_s=0)
    said = (
        r"the loss is nan at step (\d+) of 32; (\S+) holds the state of step (\d+); "
        "lower learning_rate=0.05, which goes on from there"
    )
    found = re.search(said, str(caught.value))
    assert found is not None, caught.value
    step = int(found[3])
    assert (int(found[1]), found[2]) == (step + 1, str(path))
    assert step > 0
    content = torch.load(path, weights_only=True)
    assert content["state"]["step"] == step
    assert all(torch.equal(value, content["model"][key]) for key, value in model.state_dict().items())
    fine = network()
    with pytest.raises(Interrupt):
        train(interrupted_after(fine, step), spoilt(100))
    # Its BatchNorm has seen the next batch too, which that of the model given back has not.
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), fine.parameters(), strict=True))


def test_after_a_loss_that_is_no_number_another_learning_rate_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    options: dict[str, Any] = {"checkpoint_path": path, "checkpoint_every_s": 0}
    with pytest.raises(FinetuneError, match="the loss is nan"):
        train(network(), spoilt(100), **options)
    step = torch.load(path, weights_only=True)["state"]["step"]
    with pytest.raises(UsageError, match="was made with seed=0, now 1"):
        train(network(), spoilt(100), **options, seed=1)
    with pytest.raises(FinetuneError, match=rf"the loss is nan at step {step + 1} of 32; .*lower learning_rate=0.01"):
        train(network(), spoilt(100), **options, learning_rate=0.01)


@pytest.mark.parametrize(
    "options",
    [{"steps": 1}, {"batch_size": 64, "epochs": 3}, {"checkpoint_every_s": 0}],
    ids=["the last", "an epoch's last", "before a checkpoint"],
)
def test_step_that_spoils_the_weights_is_never_kept(options: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    before = network()
    with pytest.raises(FinetuneError, match=r"are not finite after step 1 of \d+; the model holds .* step 0 again"):
        train(
            model,
            images(),
            learning_rate=1e30,
            grad_clip_norm=None,
            warmup=0.0,
            checkpoint_path=tmp_path / "training.pt",
            log_path=tmp_path / "log.csv",
            **options,
        )
    assert is_same(model, before)
    assert not list(tmp_path.iterdir())


def test_statistics_that_lag_behind_are_no_divergence() -> None:
    model = network()
    model[1].running_mean.fill_(float("inf"))
    model[1].momentum = 0.0
    report = train(model, images(), score_holdout=False)
    assert report.steps == 8
    assert all(bool(each.isfinite().all()) for each in model.parameters())


def test_label_beyond_the_classes_is_named_whenever_it_comes() -> None:
    labels = torch.arange(256) % 3
    labels[250] = 5
    pictures = torch.randn(256, 3, 8, 8)
    data = ImageData(
        name="own",
        num_classes=10,
        input_shape=(3, 8, 8),
        train=TensorDataset(pictures, labels),
        holdout=images().holdout,
        test=images().test,
    )
    with pytest.raises(DataError, match=r"^step (?!1,)\d+, image \d+: label 5 is outside 0\.\.2"):
        train(network(), data)


def test_holdout_of_one_class_is_refused_before_training() -> None:
    fine = images()
    one = TensorDataset(torch.randn(9, 3, 8, 8), torch.ones(9, dtype=torch.long))
    data = replace(fine, holdout=one, fingerprint="")
    with pytest.raises(DataError, match=r"^made up: all 9 images of the holdout have one label; .* give another"):
        train(interrupted_after(network(), 0), data)
    assert train(network(), data, score_holdout=False).steps == 8
    with pytest.raises(DataError, match=r"^made up: has no split 'holdout'"):
        replace(fine, holdout=None, fingerprint="")


def test_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    train(network(), images(), steps=2, checkpoint_path=path)
    kept = path.read_bytes()
    said = r"^checkpoint_path=[^\n]*could not be written .*; make room there"
    with no_file_longer_than(len(kept) // 2), pytest.raises(FinetuneError, match=said):
        mark_diverged(path)
    assert path.read_bytes() == kept
    assert [each.name for each in tmp_path.iterdir()] == ["training.pt"]


def test_run_that_is_stopped_while_it_scores_logs_as_if_it_had_not_been(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_path": tmp_path / "training.pt", "checkpoint_every_s": 0}
    expected = train(network(), images()).history
    broken = network()

    def stop(model: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if not model.training and len(given[0]) == 64:  # the holdout
            raise Interrupt

    broken.register_forward_pre_hook(stop)
    with pytest.raises(Interrupt):
        train(broken, images(), **options)
    report = train(network(), images(), **options)
    assert report.resumed_from_step == 4
    options_of_both = FinetuneOptions(learning_rate=0.05)
    at_the_ends = [options_of_both.learning_rate_at(step, 8) for step in (3, 7)]
    assert [row.learning_rate for row in report.history] == [row.learning_rate for row in expected] == at_the_ends


def _bytes_of_checkpoint(path: Path) -> bytes:
    with pytest.raises(Interrupt):
        train(interrupted_after(network(), 6), images(), checkpoint_path=path, checkpoint_every_s=0, ema_decay=0.9)
    return path.read_bytes()


def test_flipped_bytes_of_a_checkpoint_never_end_in_other_weights(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    expected = network()
    train(expected, images(), ema_decay=0.9)
    whole = _bytes_of_checkpoint(path)
    refused = 0
    for place in range(60, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        model, said = network(), ""
        try:
            train(model, images(), checkpoint_path=path, ema_decay=0.9)
        except UsageError as error:
            said = str(error)
        refused += bool(said)
        assert is_same(model, network() if said else expected), place
        assert not said or re.match(r"checkpoint_path=\S+: [^\n]*delete (it|the file)", said)
    assert refused > 20


def _rewritten(path: Path, change: Callable[[dict[str, Any]], None], *, keeps_digest: bool) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    if keeps_digest:
        torch.save(content, path)
    else:  # as whoever writes such a file on purpose would
        content.pop("digest")
        _checkpoint._replace(path, content)


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "weight": lambda c: c["model"]["0.weight"].mul_(1.001),
    "momentum": lambda c: c["optimizer"]["state"][0]["momentum_buffer"].add_(1),
    "step": lambda c: c["state"].update(step=1),
    "history": lambda c: c["state"].update(history=[]),
    "option": lambda c: c["config"].update(more=1),
    "part": lambda c: c.pop("average"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_edited_checkpoint_is_refused_by_its_checksum(name: str, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    _bytes_of_checkpoint(path)
    _rewritten(path, CHANGES[name], keeps_digest=True)
    with pytest.raises(UsageError, match=r"is damaged \(its content and its checksum differ\); delete it"):
        train(network(), images(), checkpoint_path=path, ema_decay=0.9)
    with pytest.raises(UsageError, match="is damaged"):
        mark_diverged(path)


WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "step of text": lambda c: c["state"].update(step="6"),
    "step below 0": lambda c: c["state"].update(step=-1),
    "step beyond the end": lambda c: c["state"].update(step=10**6),
    "batch beyond the end": lambda c: c["state"].update(batch=99),
    "no epoch": lambda c: c["state"].pop("epoch"),
    "history of numbers": lambda c: c["state"].update(history=[1, 2]),
    "row without loss": lambda c: c["state"]["history"][0].pop("train_loss"),
    "state of text": lambda c: c.update(state="6"),
    "no model": lambda c: c.pop("model"),
    "model of a list": lambda c: c.update(model=[1]),
    "weight of another shape": lambda c: c["model"].update({"0.weight": torch.zeros(2)}),
    "weight of text": lambda c: c["model"].update({"0.weight": "0"}),
    "weight that is missing": lambda c: c["model"].pop("0.weight"),
    "optimizer without groups": lambda c: c["optimizer"].pop("param_groups"),
    "groups of text": lambda c: c["optimizer"].update(param_groups="x"),
    "average of None": lambda c: c.update(average=None),
    "best of numbers": lambda c: c["state"].update(best_weights={"a": 1}),
    "config of text": lambda c: c.update(config="x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_checkpoint_of_wrong_types_is_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    _bytes_of_checkpoint(path)
    _rewritten(path, WRONG[name], keeps_digest=False)
    with pytest.raises(UsageError, match=r"^checkpoint_path=[^\n]*delete (it|the file) to start over$"):
        train(network(), images(), checkpoint_path=path, ema_decay=0.9)


def test_checkpoint_of_the_version_before_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    expected = network()
    train(expected, images(), ema_decay=0.9)
    _bytes_of_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["digest"]
    torch.save({**content, "schema": 2}, path)
    model = network()
    assert train(model, images(), checkpoint_path=path, ema_decay=0.9).resumed_from_step == 6
    assert is_same(model, expected)


@pytest.mark.parametrize("place", ["a folder", "a pipe", "an empty file"])
def test_checkpoint_that_is_no_file_is_named(place: str, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    {"a folder": path.mkdir, "a pipe": lambda: os.mkfifo(path), "an empty file": path.touch}[place]()
    with pytest.raises(UsageError, match=r"^checkpoint_path=\S+: is no training checkpoint"):
        train(network(), images(), checkpoint_path=path)


def test_full_disk_at_the_first_checkpoint_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    options: dict[str, Any] = {"checkpoint_path": tmp_path / "training.pt", "log_path": tmp_path / "log.csv"}
    with no_file_longer_than(500), pytest.raises(FinetuneError, match="could not be written"):
        train(network(), images(), **options)
    assert not list(tmp_path.iterdir())


def test_log_is_whole_where_a_run_ended_between_its_checkpoint_and_its_log(tmp_path: Path) -> None:
    path, log = tmp_path / "training.pt", tmp_path / "log.csv"
    train(network(), images(), checkpoint_path=path, log_path=log)
    expected = log.read_text()
    log.unlink()
    train(network(), images(), checkpoint_path=path, log_path=log)
    assert log.read_text() == expected
