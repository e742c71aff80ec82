"""Targets: exactly as many gates as asked for, or the best choice within the budget, against all choices."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import layerfold as lf
from layerfold.search import GRANULARITIES, activations_left, list_gates
from layerfold.search._merging import BestMerging, predict_gates_ms
from layerfold.search._targets import BudgetTarget, NumberTarget
from tests.torch_cpu.search_networks import random_network, random_table


@pytest.mark.parametrize("seed", range(5))
def test_number_target_keeps_exactly_that_many_of_the_highest_scores(seed: int) -> None:
    rng = random.Random(seed)
    scores = [rng.choice([rng.gauss(0, 1), 0.0]) for _ in range(rng.randint(1, 20))]
    for keep in range(len(scores) + 1):
        target = NumberTarget(len(scores), keep)
        on = target.choose(scores, 1.0)
        assert sum(on) == keep
        stay = [score for score, is_on in zip(scores, on, strict=True) if is_on]
        go = [score for score, is_on in zip(scores, on, strict=True) if not is_on]
        assert min(stay, default=9.0) >= max(go, default=-9.0)
        numbers = [sum(target.choose(scores, share / 10)) for share in range(11)]
        assert numbers == sorted(numbers, reverse=True)
        assert numbers[0] == len(scores)


@pytest.mark.parametrize("keep", [-1, 4, 1.5, True])
def test_more_gates_than_there_are_is_refused(keep: int) -> None:
    rule = r"^keep=\S+: must be a whole number from 0 to 3, the number of gates, or a share of them below 1$"
    with pytest.raises(lf.UsageError, match=rule):
        NumberTarget(3, keep)


@pytest.mark.parametrize(("seed", "granularity"), list(itertools.product(range(25), GRANULARITIES)))
def test_budget_target_is_the_best_of_all_choices(seed: int, granularity: str) -> None:
    rng = random.Random(seed)
    model = random_network(seed, blocks=rng.randint(2, 4)).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    gates = list_gates(net, granularity)  # type: ignore[arg-type]
    merging = BestMerging(net, random_table(net, seed))
    every = list(itertools.product((False, True), repeat=len(gates)))
    latencies_ms = {on: predict_gates_ms(merging, gates, on) for on in every}
    least_ms = min(latencies_ms.values())
    scores = [rng.gauss(0.3, 1) for _ in gates]
    worths = [max(score, 1e-6 * max(*scores, 1e-300)) for score in scores]
    for share in (0.0, 0.3, 0.7, 1.0):
        budget_ms = least_ms + share * (max(latencies_ms.values()) - least_ms)
        on = BudgetTarget(net, gates, merging, budget_ms).choose(scores, 1.0)
        assert latencies_ms[on] <= budget_ms * (1 + 1e-12)
        best = max(
            sum(itertools.compress(worths, each)) for each in every if latencies_ms[each] <= budget_ms * (1 + 1e-12)
        )
        if latencies_ms[(True,) * len(gates)] > budget_ms:
            assert sum(itertools.compress(worths, on)) == pytest.approx(best, abs=1e-9)
        else:
            assert all(on)
    with pytest.raises(lf.InfeasibleBudgetError, match="the least predicted latency is") as caught:
        BudgetTarget(net, gates, merging, least_ms * 0.99)
    assert caught.value.least_ms == pytest.approx(least_ms)


@pytest.mark.parametrize("seed", range(8))
def test_predicted_latency_is_the_tables_for_the_solution(seed: int) -> None:
    net = lf.trace_network(random_network(seed).eval(), torch.zeros(1, 3, 12, 12))
    gates, table = list_gates(net), random_table(net, seed)
    merging = BestMerging(net, table)
    on = [random.Random(seed).random() < 0.5 for _ in gates]
    solution = merging.solution(activations_left(net, gates, on))
    assert solution.predicted_ms == table.predict_ms(solution) == predict_gates_ms(merging, gates, on)
    optimal = lf.compute_optimal_latency(table)
    stops = [0, *solution.act_pos, *(chain.end for chain in net.chains)]
    for first, last in itertools.pairwise(sorted(set(stops))):
        if (first, last) in optimal:
            inside = [s for s in solution.segments if first <= s.start and s.end <= last]
            assert sum(s.latency_ms or 0 for s in inside) == pytest.approx(optimal.entry(first, last).latency_ms)


def test_without_a_table_as_few_convs_as_candidates_allow_are_left() -> None:
    model = lf.load_model("torchvision:vgg16_bn", num_classes=10).module.eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 32, 32))
    solution = BestMerging(net, None).solution([chain.end for chain in net.chains])
    assert solution.merge_pos == tuple(chain.end for chain in net.chains)
    assert solution.predicted_ms is None
    small = BestMerging(net, None, max_kernel=5).solution([chain.end for chain in net.chains])
    assert [(s.start, s.end) for s in small.segments if s.end > 4][:2] in ([(4, 6), (6, 7)], [(4, 5), (5, 7)])
    lf.merge_network(lf.build_train_form(model, net, small).eval())


def test_table_of_another_network_is_refused() -> None:
    one, other = (lf.trace_network(random_network(seed).eval(), torch.zeros(1, 3, 12, 12)) for seed in (0, 1))
    with pytest.raises(lf.ProvenanceMismatchError, match=f"{one.hash}.*{other.hash}"):
        BestMerging(other, random_table(one, 0))
