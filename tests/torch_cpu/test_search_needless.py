"""An activation whose removal frees no merge stays in what a search ends with, and while it trains."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import layerfold as lf
from layerfold.search import GRANULARITIES, Gate, activations_left, list_gates
from layerfold.search._gated import GatedNetwork
from layerfold.search._merging import BestMerging, predict_gates_ms
from layerfold.search._needless import without_needless
from tests.torch_cpu.networks import randomise_norms
from tests.torch_cpu.search_networks import random_network, random_table

CASES = list(itertools.product(range(8), GRANULARITIES, [False, True]))


def random_choice(
    seed: int, net: lf.Network, gates: tuple[Gate, ...], has_table: bool
) -> tuple[BestMerging, list[bool]]:
    rng = random.Random(seed + 50)
    return BestMerging(net, random_table(net, seed) if has_table else None), [rng.random() < 0.4 for _ in gates]


def needless(net: lf.Network, solution: lf.Solution) -> set[int]:
    return set(net.original_act_pos) & set(solution.merge_pos) - set(solution.act_pos)


@pytest.mark.parametrize(("seed", "granularity", "has_table"), CASES)
def test_what_frees_no_merge_stays_and_costs_nothing(seed: int, granularity: str, has_table: bool) -> None:
    net = lf.trace_network(random_network(seed, blocks=4).eval(), torch.zeros(1, 3, 12, 12))
    gates = list_gates(net, granularity)  # type: ignore[arg-type]
    merging, on = random_choice(seed, net, gates, has_table)
    choice = without_needless(merging, gates, on)
    solution = merging.solution(choice.act_pos)
    assert not needless(net, solution)
    assert all(after >= before for before, after in zip(on, choice.on, strict=True))
    assert set(choice.act_pos) == set(activations_left(net, gates, choice.on)) | choice.staying
    before_ms, after_ms = predict_gates_ms(merging, gates, on), merging.predict_ms(choice.act_pos)
    assert after_ms <= before_ms * (1 + 1e-12)
    assert without_needless(merging, gates, choice.on) == choice


def test_some_choices_would_have_removed_needlessly() -> None:
    found = 0
    for seed, granularity, has_table in CASES:
        net = lf.trace_network(random_network(seed, blocks=4).eval(), torch.zeros(1, 3, 12, 12))
        gates = list_gates(net, granularity)  # type: ignore[arg-type]
        merging, on = random_choice(seed, net, gates, has_table)
        found += bool(needless(net, merging.solution(activations_left(net, gates, on))))
    assert found > len(CASES) / 4


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_of_a_gate_that_is_off_computes_what_the_train_form_with_it_does(seed: int) -> None:
    model, images = random_network(seed, blocks=4).eval().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    randomise_norms(model)
    net = lf.trace_network(model, images)
    gates = list_gates(net, "block")
    gated = GatedNetwork(model, net, gates)
    staying = {gate.positions[0] for gate in gates}
    gated.switch([False] * len(gates), staying)
    kept = [p for p in net.original_act_pos if p in staying or all(p not in gate.positions for gate in gates)]
    form = lf.build_train_form(model, net, lf.Solution(act_pos=kept, merge_pos=range(1, len(net.layers) + 1)))
    with torch.no_grad():
        assert torch.allclose(gated.module(images), form(images), rtol=0, atol=1e-12)
