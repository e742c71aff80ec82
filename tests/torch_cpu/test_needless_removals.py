"""No plan for a real network removes an activation where merging stops, however noisy the importances are."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.cli import main
from layerfold.importance.requests import list_requests
from layerfold.solver import Limits, solve_alternatives
from tests.torch_cpu.networks import make_network

NETWORKS = [
    "timm:mobilenetv2_050",
    "timm:efficientnet_lite0",
    "cifar:resnet20",
    "timm:repvgg_a0",
    "timm:mobilenetv1_100",
]


def tables(net: lf.Network, seed: int) -> tuple[lf.LatencyTable, lf.ImportanceTable]:
    """Return latencies of all candidates by which some merges pay, and importances that are little more than noise."""
    rng = random.Random(seed)
    candidates = net.candidates(max_kernel=9)
    chains = tuple((chain.start, chain.end) for chain in net.chains)
    latency = lf.LatencyTable(
        [
            lf.LatencyEntry(
                start=each.start,
                end=each.end,
                latency_ms=rng.uniform(0.08, 0.12) * each.num_layers ** rng.choice([0.4, 0.8, 1.2]),
                spread_ms=0.002,
                params=each.num_layers,
                signature=each.signature,
            )
            for each in candidates
        ],
        provenance=lf.Provenance(kind="latency", chains=chains),
    )
    importance = lf.ImportanceTable(
        [
            lf.ImportanceEntry(
                start=each.start,
                end=each.end,
                start_act=each.start_act,
                end_act=each.end_act,
                importance=rng.gauss(-0.05 * (each.end - each.start - 1), 0.3),
            )
            for each in list_requests(net, candidates, fill_slots=seed % 2 == 0)
        ],
        provenance=lf.Provenance(kind="importance", chains=chains),
    )
    return latency, importance


def needless(net: lf.Network, solution: lf.Solution) -> set[int]:
    ends = {chain.end for chain in net.chains}
    return (set(net.original_act_pos) & set(solution.merge_pos)) - set(solution.act_pos) - ends


@pytest.fixture(scope="module", params=NETWORKS)
def net(request: pytest.FixtureRequest) -> lf.Network:
    model, images = make_network(request.param)
    return lf.trace_network(model, images)


@pytest.mark.parametrize("seed", range(3))
def test_solutions_keep_what_frees_no_merge(net: lf.Network, seed: int) -> None:
    latency, importance = tables(net, seed)
    frontier = lf.solve_frontier(latency, importance)
    assert [needless(net, each) for each in frontier] == [set()] * len(frontier)
    chosen = frontier.at(budget_ms=0.5 * (frontier.least_ms + frontier.original_ms))
    some = solve_alternatives(latency, importance, count=3, budgets_ms=[chosen.budget_ms or 0.0])
    assert [needless(net, each) for each in some] == [set()] * len(some)
    as_published = lf.solve_frontier(latency, importance, limits=Limits(allow_bare_stops=True))
    assert any(needless(net, each) for each in as_published), "the importances must tempt"


@pytest.mark.parametrize("ways", [{"risk": 0.05}, {"epsilon": 0.01}, {"limits": Limits(max_merged=3)}], ids=str)
def test_no_way_of_solving_removes_needlessly(net: lf.Network, ways: dict[str, object]) -> None:
    latency, importance = tables(net, 1)
    frontier = lf.solve_frontier(latency, importance, **ways)  # type: ignore[arg-type]
    assert [needless(net, each) for each in frontier] == [set()] * len(frontier)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3)),
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU()),
    ],
    ids="123",
)
def test_the_smallest_networks_keep_their_activations(make: Callable[[], nn.Module]) -> None:
    net = lf.trace_network(make().eval(), torch.zeros(1, 3, 9, 9))
    for seed in range(8):
        for solution in lf.solve_frontier(*tables(net, seed)):
            assert not needless(net, solution)


_MODEL = """
from torch import nn

def model():
    layers = [part for _ in range(4) for part in (nn.Conv2d(3, 3, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.mark.parametrize(
    ("acts", "stops", "named"),
    [
        ([3, 4], [1, 2, 3, 4], "1,2"),
        ([], [2, 4], "2"),
        ([1], [1, 3], "3"),
        ([1, 2, 3], [1, 2, 3, 4], ""),
        ([2], [2, 4], ""),
        ([], [4], ""),
    ],
)
def test_solutions_by_hand_may_remove_but_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], acts: list[int], stops: list[int], named: str
) -> None:
    (tmp_path / "toy.py").write_text(_MODEL)
    lf.Solution(act_pos=acts, merge_pos=stops).write(tmp_path / "hand.json")
    assert (
        main(
            [
                "merge",
                "--model",
                f"{tmp_path / 'toy.py'}:model",
                "--input",
                "3x8x8",
                "-o",
                str(tmp_path / "merged.safetensors"),
                "--solution",
                str(tmp_path / "hand.json"),
            ]
        )
        == 0
    )
    told = capsys.readouterr().err
    assert ("where merging stops all the same" in told) == bool(named)
    assert not named or f"removes the activations at {named}, where" in told
