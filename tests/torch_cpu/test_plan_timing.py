"""Plans of a real small network on ONNX Runtime, and light weights that change nothing but the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from layerfold.graph import trace_network
from layerfold.profiler import get_backend
from layerfold.profiler.graphs.assemble import assemble_network
from layerfold.profiler.graphs.light_weights import LIGHT_BYTES, lightened, repeated_weight
from layerfold.profiler.graphs.outside import outside_graph
from layerfold.profiler.plans.draw import covering_solutions, promising_segments
from layerfold.profiler.plans.fitted import growth_of
from layerfold.profiler.plans.plan import Plan
from layerfold.profiler.plans.timer import PlanTimer
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.timing.measurement import MeasurePolicy
from layerfold.profiler.timing.sentinel import SENTINEL
from layerfold.tables import LatencyEntry

QUICK = MeasurePolicy(target=0.05, cap_s=0.1, warmup_cap_s=0.05)


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    body = [part for _ in range(4) for part in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2048)).eval()
    return model, trace_network(model, torch.zeros(1, 64, 16, 16))


def test_plans_are_timed_once_and_kept(traced, tmp_path) -> None:
    model, net = traced
    backend = get_backend("onnxruntime")
    compiled = []
    plain = backend.compile
    backend.compile = lambda onnx_bytes: compiled.append(1) or plain(onnx_bytes)  # type: ignore[method-assign]
    plans = [Plan((2, 4), (2, 4)), Plan((1, 4), (1, 4)), Plan((2, 4), (2, 4))]
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        timer = PlanTimer(net, outside_graph(model, net), backend, cache, QUICK)
        first = timer.measure(plans)
        count = len(compiled)
        again = timer.measure(plans)
        assert [(e.plan, e.ratio, e.low, e.high) for e in again] == [(e.plan, e.ratio, e.low, e.high) for e in first]
        assert len(compiled) == count
    assert [each.plan for each in first] == plans
    assert first[0] == first[2]
    for each in first:
        assert each.low <= each.ratio <= each.high
        assert each.ratio > 1.1  # two dense 3x3 convs in one 5x5 take more arithmetic


def test_original_against_itself_takes_as_long(traced) -> None:
    model, net = traced
    timer = PlanTimer(
        net, outside_graph(model, net), get_backend("onnxruntime"), None, MeasurePolicy(target=0.02, cap_s=1.0)
    )
    assert timer.measure([timer.original])[0].ratio == pytest.approx(1.0, abs=0.2)


def test_light_graph_has_the_same_nodes_once_compiled_and_a_small_file(traced) -> None:
    import onnx

    model, net = traced
    outside = outside_graph(model, net)
    assert outside.onnx_bytes is not None
    light = lightened(outside.onnx_bytes)
    assert len(light) < len(outside.onnx_bytes) - LIGHT_BYTES
    onnx.checker.check_model(onnx.load_from_string(light))
    runner = get_backend("onnxruntime").compile(assemble_network(net, outside, (4,), (2, 4)))
    output = runner.infer({"network_input0": np.ones((1, 64, 16, 16), dtype=np.float32)})[0]
    assert output.shape == (1, 2048)
    assert np.isfinite(output).all()
    assert np.abs(output).max() > 1e-3  # neither vanished nor denormal, which would be slow


def test_repeated_weight_is_what_its_rule_says() -> None:
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    node, initializers = repeated_weight("w", (3, 4, 5, 5), np.dtype(np.float32), [1.0, -2.0])
    graph = helper.make_graph(
        [node], "g", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4, 5, 5])], initializers
    )
    (weight,) = ReferenceEvaluator(helper.make_model(graph)).run(None, {})
    rows = numpy_helper.to_array(initializers[0])
    assert weight.shape == (3, 4, 5, 5)
    assert np.array_equal(weight, np.broadcast_to(rows, weight.shape))
    assert rows.reshape(-1) == pytest.approx([1.1 / 100, 0.8 / 100, 1.1 / 100])


def test_covering_plans_hold_every_promising_segment_and_no_other(traced) -> None:
    _, net = traced
    entries = [LatencyEntry(start=m, end=m + 1, latency_ms=1.0) for m in range(4)]
    costs = {(0, 2): 1.0, (1, 3): 2.2, (2, 4): 9.0, (0, 3): 2.0}
    entries += [LatencyEntry(start=s, end=e, latency_ms=ms) for (s, e), ms in costs.items()]
    growth = growth_of(entries)
    assert growth[1, 3] == pytest.approx(1.1)
    assert promising_segments(growth) == [(0, 2), (0, 3), (1, 3)]
    plans = covering_solutions(net, growth, 20, seed=1)
    merged = [(s.start, s.end) for plan in plans for s in net.segments_of(plan.merge_pos) if s.num_layers > 1]
    assert set(merged) == {(0, 2), (0, 3), (1, 3)}
    assert len({plan.merge_pos for plan in plans}) == len(plans)
    assert all(set(plan.act_pos) <= set(plan.merge_pos) for plan in plans)
    assert plans == covering_solutions(net, growth, 20, seed=1)


def test_plan_timed_beside_a_neighbour_is_timed_again_and_less_trusted(traced, tmp_path, monkeypatch) -> None:
    model, net = traced
    outside, plan = outside_graph(model, net), Plan((2, 4), (2, 4))
    with MeasurementCache(tmp_path / "c.sqlite", {}) as cache:
        timer = PlanTimer(net, outside, get_backend("onnxruntime"), cache, QUICK)
        monkeypatch.setattr(SENTINEL, "is_slowed", lambda: True)
        slowed = timer.measure([plan])[0]
        assert slowed.is_slowed
        assert slowed.deviation > 0.02 * slowed.ratio
        monkeypatch.setattr(SENTINEL, "is_slowed", lambda: False)
        # Both readings are there: what a resumed run finds is what this one found.
        again = timer.measure([plan])[0]
        assert (again.ratio, again.is_slowed) == (slowed.ratio, True)
        cache_of_quiet = MeasurementCache(False, {})
        quiet = PlanTimer(net, outside, get_backend("onnxruntime"), cache_of_quiet, QUICK).measure([plan])[0]
        assert not quiet.is_slowed
        assert timer.measure_now(plan).plan == plan
