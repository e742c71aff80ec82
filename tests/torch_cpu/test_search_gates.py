"""Gates: which there are, and that switching them is what the train form without those activations computes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.search import GRANULARITIES, activations_left, list_gates
from layerfold.search._gated import GatedNetwork
from layerfold.search._schedule import Annealing
from tests.torch_cpu.networks import make_network, randomise_norms
from tests.torch_cpu.search_networks import random_network

_IMAGES = torch.zeros(1, 3, 32, 32)


def test_slot_gates_are_the_activations_inside_chains() -> None:
    model, images = make_network("timm:mobilenetv2_100")
    net = lf.trace_network(model, images)
    ends = {chain.end for chain in net.chains}
    assert [gate.positions for gate in list_gates(net)] == [(p,) for p in net.original_act_pos if p not in ends]


def test_block_gates_of_inverted_residuals_fill_their_linear_bottleneck() -> None:
    model, images = make_network("timm:mobilenetv2_100")
    net = lf.trace_network(model, images)
    gates = list_gates(net, "block")
    assert [(gate.positions, gate.fills) for gate in gates] == [((p, p + 1), p + 2) for p in range(1, 51, 3)]
    assert [gate.name for gate in gates[:2]] == ["conv_stem", "blocks.1.0.conv_pw"]
    on = [index != 3 for index in range(len(gates))]
    assert set(net.original_act_pos) ^ set(activations_left(net, gates, on)) == {10, 11, 12}


def test_block_gates_of_basic_blocks_keep_the_activation_behind_the_sum() -> None:
    model, images = make_network("cifar:resnet20")
    net = lf.trace_network(model, images)
    gates = list_gates(net, "block")
    assert [gate.positions for gate in gates] == [(residual.src + 1,) for residual in net.residuals]
    assert all(gate.fills is None for gate in gates)


def test_blocks_of_a_plain_chain_end_in_front_of_strides() -> None:
    net = lf.trace_network(lf.load_model("timm:mobilenetv1_100").module.eval(), torch.zeros(1, 3, 64, 64))
    strided = [layer.index for layer in net.layers if max(layer.conv.stride) > 1]
    starts = [gate.positions[0] - 1 for gate in list_gates(net, "block")]
    assert starts == [0, *(index - 1 for index in strided if index > 1)]


def test_activations_in_squeeze_and_excitation_have_no_gate() -> None:
    net = lf.trace_network(lf.load_model("timm:efficientnet_b0").module.eval(), torch.zeros(1, 3, 64, 64))
    assert not any(".se." in gate.name for gate in list_gates(net))


def test_network_without_inner_activations_is_refused() -> None:
    net = lf.trace_network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), _IMAGES)
    with pytest.raises(lf.UsageError, match="has no activation inside a chain at slot granularity"):
        list_gates(net)
    with pytest.raises(lf.UsageError, match=r"^granularity='layer': must be one of slot, block"):
        list_gates(net, "layer")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["timm:mobilenetv2_100", "torchvision:resnet34", "cifar:resnet20", *range(8)])
def test_gates_that_are_on_change_nothing(name: str | int) -> None:
    if isinstance(name, int):
        model, images = random_network(name).eval(), torch.randn(2, 3, 12, 12)
        randomise_norms(model)
    else:
        model, images = make_network(name)
    gated = GatedNetwork(model, lf.trace_network(model, images), list_gates(lf.trace_network(model, images)))
    with torch.no_grad():
        assert torch.equal(gated.module(images), model(images))
    assert torch.allclose(gated.module(images), model(images))


@pytest.mark.parametrize(("seed", "granularity"), list(itertools.product(range(6), GRANULARITIES)))
def test_gates_that_are_off_compute_what_the_train_form_without_them_does(seed: int, granularity: str) -> None:
    model, images = random_network(seed, blocks=4).eval().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    randomise_norms(model)
    net = lf.trace_network(model, images)
    gates = list_gates(net, granularity)  # type: ignore[arg-type]
    gated = GatedNetwork(model, net, gates)
    on = [random.Random(seed + 9).random() < 0.5 for _ in gates]
    gated.switch(on)
    kept = [p for p in activations_left(net, gates, on) if net.has_activation(p)]  # a slot is filled afterwards only
    # Nothing is merged, so no padding moves.
    solution = lf.Solution(act_pos=tuple(kept), merge_pos=tuple(range(1, len(net.layers) + 1)))
    expected = lf.build_train_form(model, net, solution)
    with torch.no_grad():
        assert torch.allclose(gated.module(images), expected(images), rtol=0, atol=1e-12)


def test_score_learns_from_the_activation_as_if_it_were_mixed_in() -> None:
    model, images = random_network(1).eval().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    net = lf.trace_network(model, images)
    gated = GatedNetwork(model, net, list_gates(net))
    gated.switch([index % 2 == 0 for index in range(len(list_gates(net)))])
    gated.module(images).pow(2).sum().backward()
    step = 1e-6
    for gate in gated._gates:
        found = []
        for shift in (step, -step):
            mixed = float(gate.is_on) + shift
            gate.forward = lambda x, activated, _, mixed=mixed: x + mixed * (activated - x)  # type: ignore[method-assign]
            found.append(float(gated.module(images).detach().pow(2).sum()))
        del gate.forward
        assert gate.score.grad is not None
        assert float(gate.score.grad) == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-4, abs=1e-7)


def test_annealing_waits_and_then_goes_all_the_way() -> None:
    annealing = Annealing(begin=0.1, end=0.6)
    shares = [annealing.share_at(step, 100) for step in range(100)]
    assert shares[:11] == [0.0] * 11
    assert shares == sorted(shares)
    assert shares[59] < 1.0
    assert shares[60:] == [1.0] * 40
    assert [Annealing(begin=0.1, end=0.0).share_at(step, 3) for step in range(3)] == [1.0] * 3
    assert Annealing(begin=0.9, end=0.5).share_at(4, 10) == 0.0
    with pytest.raises(lf.UsageError, match=r"^anneal=1\.5: "):
        Annealing(begin=0.1, end=1.5)
