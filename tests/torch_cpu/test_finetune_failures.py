"""Training that cannot go on says why, and what is kept is good."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from layerfold.data import ImageData
from layerfold.errors import DataError, FinetuneError, UsageError
from layerfold.finetune import FinetuneOptions
from layerfold.finetune._checkpoint import mark_diverged
from tests.torch_cpu.small_training import Interrupt, images, interrupted_after, is_same, network, train


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
    said = (r"the loss is nan at step (\d+) of 32; (\S+) holds the state of step (\d+); "
            "lower learning_rate=0.05, which goes on from there")
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


@pytest.mark.parametrize("options", [{"steps": 1}, {"batch_size": 64, "epochs": 3}, {"checkpoint_every_s": 0}],
                         ids=["the last", "an epoch's last", "before a checkpoint"])
def test_step_that_spoils_the_weights_is_never_kept(options: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    before = network()
    with pytest.raises(FinetuneError, match=r"are not finite after step 1 of \d+; the model holds .* step 0 again"):
        train(model, images(), learning_rate=1e30, grad_clip_norm=None, warmup=0.0,
              checkpoint_path=tmp_path / "training.pt", log_path=tmp_path / "log.csv", **options)
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
    data = ImageData(name="own", num_classes=10, input_shape=(3, 8, 8), train=TensorDataset(pictures, labels),
                     holdout=images().holdout, test=images().test)
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
    path.with_name("training.pt.partial").symlink_to("/dev/full")
    with pytest.raises(FinetuneError, match=r"^checkpoint_path=[^\n]*could not be written .*; make room there"):
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
