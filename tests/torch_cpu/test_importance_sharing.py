"""One set of weights, trained in the networks of all entries in turn."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.data import ImageData
from layerfold.errors import FinetuneError
from layerfold.graph.alone import check_alone
from layerfold.graph.same_function import eval_copy
from layerfold.importance import Request, default_method, list_requests, remove_journal
from layerfold.importance.estimators import Training
from layerfold.importance.estimators.shared import Shared, train_together
from layerfold.importance.requests import NOTHING
from layerfold.importance.sharing import TakingTurns, WeightsFile
from layerfold.importance.subject import Subject

Case = tuple[nn.Module, lf.Network, ImageData]
_ARGUMENTS: dict[str, Any] = {
    "method": "shared",
    "steps": 3,
    "batch_size": 8,
    "score": "loss",
    "calibration_images": 16,
    "progress": False,
}


class _Net(nn.Module):
    """Two blocks with shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = self._conv(3)
        self.blocks = nn.ModuleList(nn.Sequential(self._conv(8), self._conv(8)) for _ in range(2))
        self.head = nn.Linear(8, 4)

    @staticmethod
    def _conv(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.stem(images)
        for block in self.blocks:
            found = found + block(found)
        answer: torch.Tensor = self.head(found.mean((2, 3)))
        return answer


@pytest.fixture
def case() -> Case:
    torch.manual_seed(0)
    model = _Net().eval()
    labels = torch.arange(48) % 4
    images = torch.randn(48, 3, 8, 8) + labels.view(-1, 1, 1, 1)
    splits = [TensorDataset(images[first::2], labels[first::2]) for first in (0, 1)]
    data = ImageData(
        name="noise", num_classes=4, input_shape=(3, 8, 8), train=splits[0], holdout=splits[1], test=splits[1]
    )
    return model, lf.trace_network(model, torch.zeros(1, 3, 8, 8)), data


def _subject(case: Case) -> Subject:
    model, net, data = case
    return Subject(
        model, net, data, lf.ImportanceOptions(calibration_images=16, holdout_images=None), is_recalibrated=False
    )


def test_checks_of_networks_that_share_weights_leave_these_as_they_are(case: Case) -> None:
    model = case[0]
    owner, forms = _subject(case).sharing_forms(_entries(case[1])[:2])
    check_alone(forms[0], torch.randn(2, 3, 8, 8))
    eval_copy(owner).double()
    for name, value in owner.named_parameters():
        assert torch.equal(value, model.get_parameter(name)), name
    assert {id(each) for each in forms[0].parameters()} <= {id(each) for each in owner.parameters()}


def _entries(net: lf.Network) -> list[Request]:
    segments = [each for each in net.candidates() if each.num_layers > 1]
    return list_requests(net, segments, fill_slots=False)


def test_networks_hold_the_owners_parameters_and_statistics_of_their_own(case: Case) -> None:
    subject = _subject(case)
    requests = [NOTHING, *_entries(case[1])]
    assert len(requests) > 4
    owner, networks = subject.sharing_forms(requests)
    images = torch.randn(4, 3, 8, 8)
    for request, network in zip(requests, networks, strict=True):
        with torch.no_grad():
            assert torch.equal(network(images), subject.changed_form(request)(images))
        assert {id(each) for each in network.parameters()} == {id(each) for each in owner.parameters()}
    buffers = [buffer.data_ptr() for network in networks for buffer in network.buffers()]
    assert len(buffers) == len(set(buffers))
    assert not {id(each) for each in owner.parameters()} & {id(each) for each in case[0].parameters()}


def test_one_network_that_has_every_turn_is_trained_as_if_alone(case: Case) -> None:
    model, _, data = case
    found = train_together(
        _subject(case),
        Training(steps=4, batch_size=8, learning_rate=0.01, seed=3),
        [NOTHING],
        checkpoint_path=None,
        progress=False,
    )
    alone = copy.deepcopy(model)
    lf.finetune_network(
        alone, data, steps=4, batch_size=8, learning_rate=0.01, seed=3, score_holdout=False, progress=False
    )
    assert found.keys() == dict(alone.named_parameters()).keys()
    for name, value in alone.named_parameters():
        assert torch.equal(found[name], value.detach()), name


def test_each_network_has_its_turn_in_every_round(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    monkeypatch.setattr(TakingTurns, "give_turn", lambda self, index: turns.append(index))
    requests = [NOTHING, *_entries(case[1])]
    train_together(_subject(case), Training(steps=3, batch_size=8), requests, checkpoint_path=None, progress=False)
    rounds = [turns[first : first + len(requests)] for first in range(0, len(turns), len(requests))]
    assert [sorted(each) for each in rounds] == [list(range(len(requests)))] * 3
    assert rounds[0] != rounds[1]


def test_entries_are_distilled_from_the_shared_weights_on(case: Case) -> None:
    model, net, data = case
    table = lf.estimate_importance(model, net, data, **_ARGUMENTS)
    weights = train_together(
        _subject(case), Training(steps=3, batch_size=8), [NOTHING, *_entries(net)], checkpoint_path=None, progress=False
    )
    trained = copy.deepcopy(model)
    trained.load_state_dict(weights, strict=False)
    plain = lf.estimate_importance(trained, net, data, **{**_ARGUMENTS, "method": "distill", "steps": 20})
    assert [each.val_loss for each in table.entries] == pytest.approx([each.val_loss for each in plain.entries])
    assert len({each.importance for each in table.entries}) > 4
    # Agreement and divergence are with the model as it was given, not with what became of it.
    assert table.provenance.options["original"]["kl"] > 0.001


def test_importance_is_what_outlasts_finetuning(case: Case) -> None:
    model, net, data = case
    sizes = [each.numel() for name, each in model.named_parameters() if name.endswith("0.weight")]
    biases = 8  # BatchNorm is folded, so that each conv has one
    weights = [size + biases for size in sizes]
    assert len(weights) == 5
    convs = [layer.index for layer in net.layers if layer.kind == "conv"]
    held = dict(zip(convs, weights, strict=True))
    lone = min(weights)
    total = sum(held.get(layer.index, lone) for layer in net.layers)
    changed = [
        each for each in lf.estimate_importance(model, net, data, **_ARGUMENTS).entries if each.end - each.start > 1
    ]
    assert len(changed) > 4
    for entry in changed:
        inside = sum(held.get(index, lone) for index in range(entry.start + 1, entry.end + 1))
        assert entry.val_loss is not None
        assert entry.importance == pytest.approx(-entry.val_loss * math.sqrt(inside / total), abs=1e-12)


def test_stopped_run_goes_on_to_the_same_table(case: Case, tmp_path: Path) -> None:
    model, net, data = case
    expected = lf.estimate_importance(model, net, data, **_ARGUMENTS)
    journal = tmp_path / "journal"
    lf.estimate_importance(model, net, data, journal_path=journal, **_ARGUMENTS)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]))
    written = tmp_path.joinpath("journal.weights").stat().st_mtime_ns
    again = lf.estimate_importance(model, net, data, journal_path=journal, **_ARGUMENTS)
    assert again.entries == expected.entries
    assert tmp_path.joinpath("journal.weights").stat().st_mtime_ns == written, "the weights were trained again"
    tmp_path.joinpath("journal.weights").unlink()
    journal.write_text("".join(lines[:3]))
    assert lf.estimate_importance(model, net, data, journal_path=journal, **_ARGUMENTS).entries == expected.entries
    remove_journal(journal)
    assert not list(tmp_path.iterdir())


def test_training_that_was_stopped_goes_on_from_its_checkpoint(case: Case, tmp_path: Path) -> None:
    model, net, data = case
    expected = lf.estimate_importance(model, net, data, **_ARGUMENTS)
    journal, seen = tmp_path / "journal", []
    give_turn = TakingTurns.give_turn

    def stop_at(self: TakingTurns, index: int) -> None:
        seen.append(index)
        if len(seen) == 8:
            raise FinetuneError("stopped")
        give_turn(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TakingTurns, "give_turn", stop_at)
        with pytest.raises(FinetuneError, match="stopped"):
            lf.estimate_importance(model, net, data, journal_path=journal, **_ARGUMENTS)
    assert tmp_path.joinpath("journal.training").exists()  # written at the end of each epoch, of three steps here
    with pytest.MonkeyPatch.context() as patch:
        later: list[int] = []
        patch.setattr(TakingTurns, "give_turn", lambda self, index: (later.append(index), give_turn(self, index))[1])
        again = lf.estimate_importance(model, net, data, journal_path=journal, **_ARGUMENTS)
    assert again.entries == expected.entries
    # Two epochs were over; of the eighth turn on nothing was done, and the seventh step is taken again.
    assert later[0] == seen[6]
    assert len(later) == 3 * (1 + len(_entries(net))) - 6
    assert not tmp_path.joinpath("journal.training").exists()


def test_other_entries_are_trained_anew(case: Case, tmp_path: Path) -> None:
    model, net, data = case
    journal = tmp_path / "journal"
    few = [each for each in net.candidates() if each.end <= 4]
    expected = lf.estimate_importance(model, net, data, candidates=few, **_ARGUMENTS)
    lf.estimate_importance(model, net, data, journal_path=journal, **_ARGUMENTS)
    found = lf.estimate_importance(model, net, data, candidates=few, journal_path=journal, **_ARGUMENTS)
    assert found.entries == expected.entries
    assert tmp_path.joinpath("journal.old").exists()


@pytest.mark.parametrize(("has_train", "is_labelled", "is_finetuned"), list(itertools.product((True, False), repeat=3)))
def test_default_is_shared_where_there_is_something_to_train_on_and_for(
    case: Case, has_train: bool, is_labelled: bool, is_finetuned: bool
) -> None:
    data = dataclasses.replace(case[2], train=case[2].train if has_train else None, is_labelled=is_labelled)
    expected = "shared" if has_train and is_labelled and is_finetuned else "recalibrate"
    assert default_method(data, is_finetuned=is_finetuned) == expected


def test_sidecar_names_the_method_that_was_taken(case: Case) -> None:
    model, net, data = case
    how = {name: value for name, value in _ARGUMENTS.items() if name != "method"}
    for given, method in ((data, "shared"), (dataclasses.replace(data, train=None), "recalibrate")):
        options = lf.estimate_importance(model, net, given, **how).provenance.options
        assert options["method"] == method
        assert options.get("segment_steps") == (20 if method == "shared" else None)
        assert options.get("segment_batch_size") == (min(32, options["batch_size"]) if method == "shared" else None)


@pytest.mark.parametrize(("given", "taken"), [(128, 32), (32, 32), (8, 8)])
def test_segments_are_trained_with_small_batches(given: int, taken: int) -> None:
    assert Shared.segment_training(Training(batch_size=given)) == Training(steps=20, batch_size=taken)


def test_weights_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    weights = {"conv.weight": torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last), "scale": torch.tensor(2.0)}
    file = WeightsFile(tmp_path / "weights")
    file.write(weights)
    found = file.read()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
