"""What each estimator says, against the networks that its entries stand for."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.data import ImageData
from layerfold.importance import Request, remove_journal
from layerfold.importance.estimators import ESTIMATORS, Distill, Taylor, Training
from layerfold.importance.scores import column_of
from layerfold.importance.subject import Subject
from layerfold.options import Refinement
from layerfold.options.importance import SCORES
from layerfold.tables import LatencyEntry, Provenance

Trained = tuple[nn.Module, lf.Network, ImageData]


@pytest.fixture(scope="module")
def trained(shared_path: Path) -> Trained:
    """Return the published ResNet-20 with some images of CIFAR-10's test split: trained, so that a change shows."""
    factory = Path(__file__).parents[2] / "benchmarks/lib/cifar_resnet.py"
    loaded = lf.load_model(f"{factory}:resnet20", weights=shared_path / "checkpoints/resnet20-12fca82f.th")
    table = pyarrow.parquet.read_table(shared_path / "data/cifar10/test.parquet").slice(0, 500)
    pixels = [np.asarray(Image.open(io.BytesIO(each))) for each in table["image"].to_pylist()]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(loaded.mean).view(3, 1, 1)) / torch.tensor(loaded.std).view(3, 1, 1)
    labels = torch.tensor(table["label"].to_pylist())
    train, holdout, test = (
        TensorDataset(images[first:last], labels[first:last]) for first, last in ((0, 256), (256, 450), (450, 500))
    )
    data = ImageData(name="cifar10", num_classes=10, input_shape=(3, 32, 32), train=train, holdout=holdout, test=test)
    return loaded.module, lf.trace_network(loaded.module, torch.zeros(1, 3, 32, 32)), data


def subject_of(trained: Trained, *, images: int = 96, is_recalibrated: bool = True) -> Subject:
    model, net, data = trained
    return Subject(
        model,
        net,
        data,
        lf.ImportanceOptions(calibration_images=images, holdout_images=images),
        is_recalibrated=is_recalibrated,
    )


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_method_fills_the_table_by_every_score_it_knows(trained: Trained, method: str) -> None:
    model, net, data = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segments = [net.segment(0, 1), net.segment(13, 15), net.segment(15, 19)]
    known = [score for score in SCORES if column_of(score) in ESTIMATORS[method].known_scores]
    for score in known[:2]:
        table = lf.estimate_importance(
            model,
            net,
            data,
            method,
            candidates=segments,
            score=score,
            steps=2,
            batch_size=16,
            holdout_images=64,
            calibration_images=64,
            fill_slots=False,
            progress=False,
        )
        assert [(entry.start, entry.end) for entry in table.entries] == [(0, 1), (13, 15), (15, 19)]
        assert table.entries[0].importance == 0.0
        assert all(entry.importance != 0.0 for entry in table.entries[1:]) or score not in ("loss", "kl")
        assert table.provenance.options["method"] == method
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_adaptive_refines_what_plans_stand_on(trained: Trained, tmp_path: Path) -> None:
    model, net, data = trained
    how: dict[str, Any] = {"score": "loss", "holdout_images": 64, "calibration_images": 64, "progress": False}
    latency = made_up_latency(net, first=7)
    journal = tmp_path / "journal"
    refinement = Refinement(start_with="taylor", refine_with="recalibrate", most=4)
    runs = [
        lf.estimate_importance(
            model, net, data, "adaptive", latency=latency, refinement=refinement, journal_path=journal, **how
        )
        for _ in range(2)
    ]
    plain = lf.estimate_importance(model, net, data, "recalibrate", latency=latency, **how)
    refined = [entry for entry in runs[0].entries if entry.extra["refined"]]
    assert 0 < len(refined) <= 4
    assert all(entry.importance == plain.by_key[entry.key].importance for entry in refined)
    assert runs[0].by_key.keys() == plain.by_key.keys()
    assert runs[0].provenance.options["spent"]["refined"] == len(refined)
    # The second run found everything in the journal.
    assert runs[1].provenance.options["seconds"] == runs[0].provenance.options["seconds"]
    assert [entry.importance for entry in runs[1].entries] == [entry.importance for entry in runs[0].entries]
    lf.solve_frontier(latency, runs[0])
    remove_journal(journal)
    assert not list(tmp_path.iterdir())


def test_adaptive_without_latencies_says_what_is_missing(trained: Trained) -> None:
    model, net, data = trained
    with pytest.raises(lf.UsageError, match=r"method='adaptive': needs a latency table.*--latency"):
        lf.estimate_importance(model, net, data, "adaptive", progress=False)


def made_up_latency(net: lf.Network, *, first: int) -> lf.LatencyTable:
    """Return latencies by which merging pays, from position ``first`` on."""
    segments = [each for each in net.candidates() if each.num_layers == 1 or each.start >= first]
    return lf.LatencyTable(
        [LatencyEntry(start=each.start, end=each.end, latency_ms=1.0 + 0.1 * each.num_layers) for each in segments],
        provenance=Provenance(kind="latency", chains=tuple((chain.start, chain.end) for chain in net.chains)),
    )


def test_finetuning_compares_with_the_original_trained_alike(trained: Trained) -> None:
    model, net, data = trained
    how: dict[str, Any] = {
        "steps": 2,
        "batch_size": 16,
        "score": "loss",
        "holdout_images": 64,
        "calibration_images": 32,
        "fill_slots": False,
        "progress": False,
    }
    table = lf.estimate_importance(model, net, data, "finetune", candidates=[net.segment(15, 17)], **how)
    original = lf.build_train_form(model, net, lf.Solution(act_pos=net.original_act_pos, merge_pos=range(1, 20)))
    lf.finetune_network(original, data, steps=2, batch_size=16, score_holdout=False, progress=False)
    before, after = (lf.evaluate_network(each, data.loader("holdout", 64, limit=64)).loss for each in (model, original))
    assert table.provenance.options["original"]["val_loss"] == pytest.approx(after, abs=1e-4)
    assert abs(after - before) > 1e-3


def test_images_without_labels_fill_a_table(trained: Trained, shared_path: Path, tmp_path: Path) -> None:
    model, net, _ = trained
    table = pyarrow.parquet.read_table(shared_path / "data/cifar10/test.parquet").slice(0, 60)
    for number, image in enumerate(table["image"].to_pylist()):
        (tmp_path / f"camera-{number % 3}").mkdir(exist_ok=True)
        (tmp_path / f"camera-{number % 3}/{number}.jpg").write_bytes(image)
    data = lf.open_data(f"images:{tmp_path}", input_shape=(3, 32, 32), num_classes=10, holdout=20, cache="off")
    assert not data.is_labelled
    found = lf.estimate_importance(model, net, data, score="kl", candidates=[net.segment(15, 17)], progress=False)
    assert found.entries[0].importance < 0
    assert found.entries[0].val_acc is None
    default = lf.estimate_importance(model, net, data, candidates=[net.segment(15, 17)], progress=False)
    assert default.provenance.options["score"] == "agreement"
    for how in ({"score": "accuracy"}, {"score": "loss"}, {"score": "kl", "method": "finetune"}):
        with pytest.raises(lf.DataError, match="has no labels; use score='kl'"):
            lf.estimate_importance(model, net, data, progress=False, **how)
    with pytest.raises(lf.DataError, match="have no labels, and without a teacher"):
        lf.finetune_network(model, data, steps=1, batch_size=4, progress=False)


def test_holdout_of_one_class_is_refused(trained: Trained) -> None:
    model, net, _ = trained
    images = TensorDataset(torch.randn(8, 3, 32, 32), torch.full((8,), 3))
    data = ImageData(name="cats", num_classes=10, input_shape=(3, 32, 32), train=images, holdout=images, test=images)
    with pytest.raises(lf.DataError, match=r"cats: all images scored \(8\) have label 3"):
        lf.estimate_importance(model, net, data, progress=False)


def test_score_that_a_method_cannot_tell_names_those_it_can(trained: Trained) -> None:
    model, net, data = trained
    with pytest.raises(lf.UsageError, match="score='accuracy': method='taylor' cannot tell it; use score=loss"):
        lf.estimate_importance(model, net, data, "taylor", progress=False)


def test_distilled_segment_comes_nearer_to_the_original(trained: Trained) -> None:
    subject = subject_of(trained)
    request = Request(start=13, end=17, start_act=1, end_act=1)
    untrained, little, much = (
        ESTIMATORS[method](subject, Training(steps=steps)).scores_of(request)["kl"]
        for method, steps in (("recalibrate", 1), ("distill", 3), ("distill", 20))
    )
    assert much < little < untrained


def test_segment_of_which_nothing_is_left_is_not_trained(trained: Trained) -> None:
    model, net, _ = trained
    segment = next(s for s in net.candidates(layer_norms=lf.layer_norms(model, net)) if s.is_identity)
    request = Request(
        start=segment.start,
        end=segment.end,
        start_act=1,
        end_act=int(net.has_activation(segment.end)),
        dropped=segment.dropped,
        merged=segment.merged,
    )
    subject = subject_of(trained)
    found = [ESTIMATORS[method](subject, Training(steps=3)).scores_of(request) for method in ("recalibrate", "distill")]
    assert found[0] == found[1]


def test_same_seed_distills_the_same(trained: Trained) -> None:
    request = Request(start=15, end=17, start_act=1, end_act=1)
    one, two = (Distill(subject_of(trained), Training(steps=4, seed=3)).scores_of(request) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("what", "position"), [("activation", 7), ("activation", 18), ("branch", 5), ("branch", 9)])
def test_taylors_first_order_term_is_the_derivative(trained: Trained, what: str, position: int) -> None:
    """Fading an activation or a branch a little changes the loss by that part of the term."""
    net = trained[1]
    subject = subject_of(trained, images=24, is_recalibrated=False)
    layer = net.graph.layers[position - 1]
    faded = layer.activation if what == "activation" else layer.norm
    assert faded is not None
    term = float(Taylor(subject, Training())._terms[what, position].mean())
    form = subject.original_form.double()
    name = str(next(node for node in form.graph.nodes if node.name == faded).target)
    module = form.get_submodule(name)

    images = torch.cat(subject.calibration.images).double()
    labels = torch.cat(subject.calibration_labels)

    def loss(share: float) -> float:
        form.set_submodule(name, _Fading(module, share, leaves_input=what == "activation"))
        with torch.no_grad():
            found = F.cross_entropy(form(images), labels)
        form.set_submodule(name, module)
        return float(found)

    step = 1e-7  # no image's value crosses the activation's kink on so short a way
    slope = (loss(step) - loss(-step)) / (2 * step)
    assert term == pytest.approx(slope, rel=5e-3, abs=1e-4)


def test_taylor_knows_branches_that_go_as_a_whole(trained: Trained) -> None:
    """A strided block has no layer to leave out alone, and what its branch held does not count beside it."""
    model, net, _ = trained
    subject = subject_of(trained, images=24, is_recalibrated=False)
    taylor = Taylor(subject, Training())
    segment = net.segment(7, 9, (8, 9))
    request = Request(start=7, end=9, start_act=1, end_act=1, dropped=segment.dropped, merged=segment.merged)
    term = taylor._terms["branch", 9]
    expected = subject.original["val_loss"] + float(term.mean() + term.square().mean() / 2)
    assert taylor.scores_of(request)["val_loss"] == pytest.approx(expected)
    norms = lf.layer_norms(model, net)
    for each in net.candidates(max_kernel=7, layer_norms=norms):
        states = {
            "start_act": int(each.start == 0 or net.has_activation(each.start)),
            "end_act": int(net.has_activation(each.end)),
        }
        request = Request(
            start=each.start, end=each.end, **states, dropped=each.dropped, merged=each.merged if each.dropped else ""
        )
        loss = taylor.scores_of(request)["val_loss"]
        assert math.isfinite(loss)
        assert request.changes_nothing(net) == (loss == subject.original["val_loss"]), each


def test_taylor_knows_branches_that_end_in_a_lone_addition() -> None:
    """The branch goes through an activation before it is added: all of it is the activation's output."""
    torch.manual_seed(0)
    model = _LoneAddition().eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    assert net.layer(3).kind == "add"
    images, labels = torch.randn(16, 3, 8, 8), torch.arange(16) % 2
    split = TensorDataset(images, labels)
    data = ImageData(name="noise", num_classes=2, input_shape=(3, 8, 8), train=split, holdout=split, test=split)
    segment = net.segment(1, 3, (2, 3))
    found = lf.estimate_importance(model, net, data, "taylor", score="loss", candidates=[segment], progress=False)

    stem = model.relu1(model.conv1(images)).detach()
    branch = model.relu2(model.conv2(stem)).detach()
    added = (branch + stem).requires_grad_()
    F.cross_entropy(model.head(added), labels, reduction="sum").backward()
    assert added.grad is not None
    terms = (added.grad * -branch).flatten(1).sum(1)
    expected = float(terms.mean() + terms.square().mean() / 2)
    assert abs(expected) > 1e-4
    assert found.entries[0].importance == pytest.approx(-expected, rel=1e-3)


class _LoneAddition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 2)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.linear(self.relu3(self.conv3(x)).mean((2, 3)))
        return given

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = self.relu1(self.conv1(x))
        return self.head(self.relu2(self.conv2(stem)) + stem)


class _Fading(nn.Module):
    """A module of whose output a share is replaced already: by its input, or by nothing."""

    def __init__(self, module: nn.Module, share: float, *, leaves_input: bool) -> None:
        super().__init__()
        self.module, self.share, self.leaves_input = module, share, leaves_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = (1 - self.share) * self.module(x.clone())
        return given + self.share * x if self.leaves_input else given
