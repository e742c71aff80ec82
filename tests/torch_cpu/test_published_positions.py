"""Published positions apply through ``exclude=``: solve on a published table, build, merge, compare."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import layerfold as lf
from layerfold.tables import ImportanceEntry, ImportanceTable
from tests.bank.architectures import find
from tests.bank.weights import randomise, randomise_norms
from tests.torch_cpu.forms import relative

MOBILENET_V2_TABLE = "seed_tables/mbv2_1.0/time_fish_gpu1_1228.csv"
VGG19_TABLE = "seed_tables/vgg19_no_trt/time_fish_gpu1_0317.csv"
# The stem and the last conv are not in the published table.
MOBILENETS = {
    "torchvision:mobilenet_v2": ("features.0", "features.18"),
    "timm:mobilenetv2_100": ("conv_stem", "conv_head"),
}


@pytest.mark.parametrize("name", MOBILENETS)
def test_mobilenet_v2_has_the_published_candidates_in_both_libraries(name: str, shared_path: Path) -> None:
    published = lf.LatencyTable.read(shared_path / MOBILENET_V2_TABLE)
    net = lf.trace_network(find(name).make().eval(), torch.zeros(1, 3, 64, 64), exclude=MOBILENETS[name])
    found = {(segment.start, segment.end) for segment in net.candidates(stop_at_strides=True)}
    assert found == {(entry.start, entry.end) for entry in published.entries}
    assert len(found) == 171


def test_vgg19_has_the_published_candidates(shared_path: Path) -> None:
    published = lf.LatencyTable.read(shared_path / VGG19_TABLE)
    net = lf.trace_network(find("torchvision:vgg19_bn").make().eval(), torch.zeros(1, 3, 32, 32))
    found = {(segment.start, segment.end) for segment in net.candidates()}
    assert found == {(entry.start, entry.end) for entry in published.entries}
    assert len(found) == 36


def random_importance(net: lf.Network, latency: lf.LatencyTable, rng: random.Random) -> lf.ImportanceTable:
    """Return importances of every published segment, at both states of a slot that was empty."""
    chain = net.chains[0]

    def states(position: int) -> tuple[int, ...]:
        if position == chain.start:
            return (1,)
        if position == chain.end:
            return (int(net.has_activation(position)),)
        return (1,) if net.has_activation(position) else (0, 1)

    return ImportanceTable(
        [
            ImportanceEntry(
                start=each.start,
                end=each.end,
                start_act=before,
                end_act=behind,
                importance=-rng.random() * (each.end - each.start - 0.9),
            )
            for each in latency.entries
            for before in states(each.start)
            for behind in states(each.end)
        ]
    )


@pytest.mark.parametrize("name", MOBILENETS)
@pytest.mark.parametrize("share", [0.6, 0.8])
@torch.no_grad()
def test_solution_of_the_published_table_is_built_and_merged(
    name: str, share: float, shared_path: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, images = find(name).make(), torch.randn(2, 3, 64, 64)
    randomise(model, images)
    net = lf.trace_network(model, images, exclude=MOBILENETS[name])
    latency = lf.LatencyTable.read(shared_path / MOBILENET_V2_TABLE)
    frontier = lf.solve_frontier(latency, random_importance(net, latency, random.Random(0)))
    budget_ms = frontier.least_ms + share * (latency.original_ms - frontier.least_ms)
    # As the published programs keep it, and as users have it: a checkpoint of positions.
    frontier.at(budget_ms=budget_ms).write_checkpoint(tmp_path / "checkpoint.pth")
    solution = lf.Solution.read(tmp_path / "checkpoint.pth")
    segments = net.segments_of(solution.merge_pos)
    assert len(segments) < len(net.layers) == 50
    assert {(each.start, each.end) for each in segments} <= {(each.start, each.end) for each in latency.entries}
    student = lf.build_train_form(model, net, solution)
    randomise_norms(student, images)
    student = student.double()
    merged = lf.merge_network(student)
    assert student(images.double()).shape == model(images).shape
    assert relative(merged(images.double()), student(images.double())) <= 1e-9
    for excluded in MOBILENETS[name]:
        assert any(key.startswith(excluded) for key in merged.state_dict())
