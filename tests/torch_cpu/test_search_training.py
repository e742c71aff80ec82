"""The search as a whole: what it ends with, that it learns the right thing, and that a killed run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.search import GRANULARITIES, list_gates
from tests.torch_cpu.search_networks import random_network, random_table

_QUICK = lf.FinetuneOptions(steps=8, batch_size=8, learning_rate=0.05)


def images(count: int = 64, size: int = 12) -> lf.ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    noise = torch.rand(count, 3, size, size, generator=generator)
    split = TensorDataset(noise + labels[:, None, None, None], labels)
    shape = (3, size, size)
    return lf.ImageData(name="noise", num_classes=2, input_shape=shape, train=split, holdout=split, test=split)


def search(model: nn.Module, net: lf.Network, **more: Any) -> lf.SearchResult:
    return lf.search_activations(model, net, images(), **{"training": _QUICK, "progress": False, **more})


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("seed", range(4))
def test_search_ends_with_as_many_gates_as_asked_for_and_those_that_free_no_merge(seed: int, granularity: Any) -> None:
    model = random_network(seed).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    number = len(list_gates(net, granularity))
    for keep in {0, number // 2, number}:
        found = search(model, net, keep=keep, granularity=granularity)
        beyond = sum(gate.is_on for gate in found.gates) - keep
        assert beyond >= 0
        ranked = sorted(found.gates, key=lambda gate: -gate.score)
        # What is on beyond the highest scores would be where merging stops all the same.
        alone = {p for gate in ranked[keep:] if gate.is_on for p in gate.positions}
        assert alone <= set(found.solution.merge_pos) & set(found.solution.act_pos)
        assert found.training.steps == 8
        merged = lf.merge_network(lf.build_train_form(model, net, found.solution).eval())
        assert merged(torch.zeros(1, 3, 12, 12)).shape == (1, 2)
        assert lf.Solution.from_json(found.solution.to_json()) == found.solution
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(found.weights)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("seed", range(4))
def test_search_ends_within_the_budget(seed: int, granularity: Any) -> None:
    model = random_network(seed).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    table = random_table(net, seed)
    with pytest.raises(lf.InfeasibleBudgetError) as caught:
        search(model, net, budget_ms=0.31, latency=table, granularity=granularity)
    for slack in (1.0, 1.1, 1.3):
        budget_ms = caught.value.least_ms * slack * (1 + 1e-9)
        found = search(model, net, budget_ms=budget_ms, latency=table, granularity=granularity)
        assert found.solution.predicted_ms == table.predict_ms(found.solution) <= budget_ms
        assert found.solution.budget_ms == budget_ms
    by_speedup = search(model, net, speedup=1.0, latency=table, granularity=granularity)
    assert by_speedup.solution.budget_ms == table.original_ms


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "give one of the three"),
        ({"keep": 1, "speedup": 2.0}, "give one of the three"),
        ({"keep": 99}, r"keep=99: must be a whole number from 0 to \d+, the number of gates"),
        ({"speedup": 1.5}, "needs latency"),
        ({"budget_ms": 1.0}, "needs latency"),
        ({"keep": 1, "anneal": 2.0}, "anneal=2.0"),
        ({"keep": 1, "training": lf.FinetuneOptions(keep="best")}, "training.keep='best'"),
        ({"keep": 1, "granularity": "layer"}, "granularity='layer'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(wrong: dict[str, Any], words: str) -> None:
    model = random_network(0).eval()
    with pytest.raises(lf.UsageError, match=words) as caught:
        search(model, lf.trace_network(model, torch.zeros(1, 3, 12, 12)), **wrong)
    assert "\n" not in str(caught.value)


class _Squares(nn.Module):
    """Tells bright from dark images by one activation alone; the other stands behind a scale of next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.needed, self.idle, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.act, self.head = nn.ReLU(), nn.Linear(4, 2)
        with torch.no_grad():
            self.idle.weight.copy_(torch.eye(8)[:, :, None, None])
            self.idle.bias.fill_(10.0)  # never below zero: its ReLU does nothing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.idle(self.act(self.needed(x))))
        pooled: torch.Tensor = self.act(self.last(x - 10.0)).mean((2, 3))
        return self.head(pooled)


def test_activation_that_does_nothing_goes_first() -> None:
    torch.manual_seed(0)
    model = _Squares()
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (128,), generator=generator) * 2.0 - 1
    size = torch.arange(128) % 2
    # The class is the size of a value, whatever its sign: no linear network can tell it.
    x = (signs * (0.2 + 0.8 * size))[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    split = TensorDataset(x, size)
    data = lf.ImageData(name="squares", num_classes=2, input_shape=(3, 4, 4), train=split, holdout=split, test=split)
    lf.finetune_network(
        model, data, steps=200, batch_size=32, optimizer="adamw", learning_rate=0.02, augment=False, progress=False
    )
    assert lf.evaluate_network(model, data.split("test")).accuracy_pct > 95
    net = lf.trace_network(model, torch.zeros(1, 3, 4, 4))
    options = lf.FinetuneOptions(steps=40, batch_size=32, learning_rate=0.01, augment=False)
    found = lf.search_activations(model, net, data, keep=1, training=options, progress=False)
    assert [(gate.name, gate.is_on) for gate in found.gates] == [("needed", True), ("idle", False)]


_KILLED = """
import os, signal, sys
import torch
import layerfold as lf
from tests.torch_cpu.search_networks import random_network, random_table
from tests.torch_cpu.test_search_training import images

out, stop_at = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
model = random_network(3, blocks=4).eval()
net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
table = random_table(net, 3)
target = {"keep": 2} if sys.argv[3] == "keep" else {"speedup": float(sys.argv[3]), "latency": table}
steps = 0

def count(module, inputs):
    global steps
    steps += module.training
    if module.training and steps == stop_at:
        os.kill(os.getpid(), signal.SIGKILL)

torch.nn.modules.module.register_module_forward_pre_hook(
    lambda module, inputs: count(module, inputs) if type(module).__name__ == "Sequential" and "search_gate" in
    " ".join(name for name, _ in module.named_children()) else None)
found = lf.search_activations(
    model, net, images(), **target, training=lf.FinetuneOptions(epochs=4, batch_size=8, learning_rate=0.05),
    checkpoint_path=out + ".checkpoint", checkpoint_every_s=0, progress=False)
found.solution.write(out)
print(found.training.resumed_from_step, [gate.score for gate in found.gates],
      sum(float(value.double().sum()) for value in found.weights.values()))
"""


def _run(out: Path, stop_at: int, target: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", _KILLED, str(out), str(stop_at), target],
        cwd=root,
        text=True,
        capture_output=True,
        timeout=300,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("target", ["keep", "1.2"])
def test_killed_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path, target: str) -> None:
    whole = _run(tmp_path / "whole.json", 0, target)
    assert whole.returncode == 0, whole.stderr
    killed = _run(tmp_path / "killed.json", 15, target)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.json").exists()
    resumed = _run(tmp_path / "killed.json", 0, target)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split(" ", 1)[0] == "14"
    assert resumed.stdout.split(" ", 1)[1] == whole.stdout.split(" ", 1)[1]
    assert (tmp_path / "killed.json").read_text() == (tmp_path / "whole.json").read_text()


def test_checkpoint_of_another_target_is_refused(tmp_path: Path) -> None:
    model = random_network(0).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    path = tmp_path / "search.checkpoint"
    search(model, net, keep=2, checkpoint_path=path)
    with pytest.raises(lf.UsageError, match=r"was made with target=\"\{'keep': 2\}\", now"):
        search(model, net, keep=1, checkpoint_path=path)
    with pytest.raises(lf.UsageError, match="was made with steps=8, now 9"):
        search(model, net, keep=2, checkpoint_path=path, training=replace(_QUICK, steps=9))
