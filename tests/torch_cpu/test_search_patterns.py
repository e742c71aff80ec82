"""Published patterns: they name positions of the network that they are for, and refuse others."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision

import layerfold as lf
from layerfold.search import PUBLISHED_PATTERNS, PUBLISHED_SEARCHES, list_gates
from tests.torch_cpu.exactness import TOLERANCE, relative_error
from tests.torch_cpu.networks import randomise_norms
from tests.torch_cpu.search_networks import random_table

_IMAGES = torch.zeros(1, 3, 64, 64)


def networks() -> dict[str, torch.nn.Module]:
    return {
        "timm": lf.load_model("timm:mobilenetv2_140", num_classes=10).module,
        "torchvision": torchvision.models.mobilenet_v2(width_mult=1.4, num_classes=10),
    }


@pytest.fixture(scope="module", params=["timm", "torchvision"])
def traced(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, lf.Network]:
    model = networks()[request.param].eval()
    return model, lf.trace_network(model, _IMAGES)


@pytest.mark.parametrize("name", PUBLISHED_PATTERNS)
def test_pattern_names_positions_of_mobilenetv2(name: str, traced: tuple[torch.nn.Module, lf.Network]) -> None:
    _, net = traced
    solution = lf.published_pattern(name, net)
    # What each flag of the published list stands for: layers by their module, told without positions.
    kinds = [layer.name for layer in net.layers]
    flags = PUBLISHED_PATTERNS[name]
    stem, separable, blocks = kinds[0], kinds[1:3], [kinds[3 + 3 * b : 6 + 3 * b] for b in range(16)]
    parents = {block[0].rsplit(".", 2 if "conv.0" in block[0] else 1)[0] for block in blocks}
    assert len(parents) == 16
    active = {net.layer(position).name for position in solution.act_pos}
    assert (stem in active) == (flags[0] == "1")
    assert [name in active for name in separable] == [flags[1] == "1", False]
    for flag, block in zip(flags[2:18], blocks, strict=True):
        assert [name in active for name in block] == ([True, True, False] if flag == "1" else [False, False, True])
    assert flags[18] == "1"
    assert net.layers[-1].name in active
    # Each block without activations is one conv; nothing else is merged.
    assert len(solution.merge_pos) == 52 - 2 * flags[2:18].count("0")
    assert [s.end - s.start for s in solution.segments if s.end > s.start + 1] == [3] * flags[2:18].count("0")
    assert lf.Solution.from_json(solution.to_json()) == solution


def test_train_form_of_a_pattern_merges(traced: tuple[torch.nn.Module, lf.Network]) -> None:
    model, net = copy.deepcopy(traced[0]).double(), traced[1]
    randomise_norms(model)
    form = lf.build_train_form(model, net, lf.published_pattern("mobilenetv2_140-D", net)).eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = form(x)
        # In float64: 52 layers without half of their activations amplify what float32 rounds by a thousand times.
        assert relative_error(lf.merge_network(form)(x), expected) <= TOLERANCE


def test_with_a_table_the_fastest_merging_follows(traced: tuple[torch.nn.Module, lf.Network]) -> None:
    _, net = traced
    table = random_table(net, 0)
    as_published, fastest = (lf.published_pattern("mobilenetv2_140-B", net, each) for each in (None, table))
    assert as_published.act_pos == fastest.act_pos
    assert as_published.predicted_ms is None
    assert fastest.predicted_ms == table.predict_ms(fastest) < table.predict_ms(as_published)


@pytest.mark.parametrize("source", ["timm:resnet18", "timm:mobilenetv2_110d", "timm:efficientnet_lite0"])
def test_pattern_of_another_network_is_refused(source: str) -> None:
    net = lf.trace_network(lf.load_model(source).module.eval(), _IMAGES)
    with pytest.raises(lf.UsageError, match=r"^pattern='mobilenetv2_140-A': is for MobileNetV2") as caught:
        lf.published_pattern("mobilenetv2_140-A", net)
    assert f"{len(net.layers)} layers" in str(caught.value)


def test_unknown_pattern_names_the_nearest() -> None:
    net = lf.trace_network(networks()["timm"].eval(), _IMAGES)
    with pytest.raises(lf.UsageError, match="nearest: mobilenetv2_140-"):
        lf.published_pattern("mobilenetv2_140-G", net)


@pytest.mark.parametrize("name", PUBLISHED_SEARCHES)
def test_published_search_fits_its_network(name: str) -> None:
    published = PUBLISHED_SEARCHES[name]
    net = lf.trace_network(lf.load_model(published.model).module.eval(), _IMAGES)
    gates = list_gates(net, published.granularity)
    # Published with gates of their own for the stem and the head, which has none here.
    assert {"efficientnet_lite0": 16, "mobilenetv2_140": 17}[name] == len(gates)
