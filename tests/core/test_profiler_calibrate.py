"""Calibration finds the line through measured plans, and random plans are plans."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

from layerfold.errors import UsageError
from layerfold.graph.description import Chain, Layer, Residual
from layerfold.graph.network import Network
from layerfold.graph.specs import ActivationSpec, ConvSpec
from layerfold.tables import LatencyEntry, LatencyTable, Provenance
from tests.oracles.random_plans import random_solutions

_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "latency" / "calibrate.py"
calibrate_latency = runpy.run_path(str(_SCRIPT))["calibrate_latency"]
RELU = ActivationSpec(kind="relu")


def table(fixed_ms: float = 0.2) -> LatencyTable:
    return LatencyTable([LatencyEntry(start=0, end=1, latency_ms=1.0)], provenance=Provenance(fixed_ms=fixed_ms))


def network(num_layers: int = 8) -> Network:
    conv = ConvSpec(in_channels=4, out_channels=4, kernel_size=(3, 3), padding=((1, 1), (1, 1)))
    layers = tuple(
        Layer(
            index=m,
            name=f"conv{m}",
            conv=conv,
            norm=None,
            activation=RELU if m % 3 else None,
            input_shape=(4, 8, 8),
            output_shape=(4, 8, 8),
        )
        for m in range(1, num_layers + 1)
    )
    return Network(
        name="toy",
        layers=layers,
        chains=(Chain(start=0, end=num_layers, activation=RELU),),
        residuals=(Residual(src=2, dst=5, source_shape=(4, 8, 8)),),
        barriers=(),
        input_shapes=((1, 4, 8, 8),),
        macs=1,
        num_params=1,
    )


def test_an_exact_line_is_found():
    points = [(x, 0.2 + 1.3 * x) for x in (1.0, 1.5, 2.0, 3.0, 4.0)]
    found = calibrate_latency(table(), points)
    assert (found.fixed_ms, found.scale) == pytest.approx((0.2, 1.3), rel=1e-6)
    assert found.max_error < 1e-9
    assert found.predict_ms(10.0) == pytest.approx(13.2)


def test_the_points_outweigh_a_wrong_prior():
    points = [(x, 0.5 + 1.1 * x) for x in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)]
    found = calibrate_latency(table(0.1), points)
    assert found.median_error < 0.02
    assert found.fixed_ms == pytest.approx(0.5, abs=0.1)


def test_one_bad_measurement_does_not_turn_the_line():
    rng = random.Random(0)
    points = [(x / 4, (0.2 + 1.3 * x / 4) * rng.uniform(0.99, 1.01)) for x in range(4, 24)]
    points[7] = (points[7][0], 5 * points[7][1])
    found = calibrate_latency(table(), points)
    assert found.scale == pytest.approx(1.3, rel=0.03)
    assert found.median_error < 0.01
    assert found.max_error > 0.7


def test_one_point_fits_the_scale_only():
    found = calibrate_latency(table(0.2), [(2.0, 2.2)])
    assert (found.fixed_ms, found.scale) == pytest.approx((0.2, 1.0))


def test_points_close_together_keep_the_slope_sane():
    found = calibrate_latency(table(0.2), [(2.00, 2.41), (2.01, 2.39), (2.02, 2.40)])
    assert found.fixed_ms == pytest.approx(0.2, abs=0.05)
    assert found.scale == pytest.approx(1.1, abs=0.05)


def test_fixed_part_is_never_negative_and_scale_always_positive():
    falling = calibrate_latency(table(), [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)])
    assert falling.fixed_ms >= 0
    assert falling.scale > 0
    steep = calibrate_latency(table(0.0), [(1.0, 0.1), (2.0, 1.1), (3.0, 2.1)])
    assert steep.fixed_ms == 0.0
    assert steep.scale > 0


def test_weights_pull_the_line_to_the_points_that_matter():
    points = [(1.0, 1.0), (2.0, 2.0), (1.0, 1.3), (2.0, 2.6)]
    left = calibrate_latency(table(0.0), points, weights=[1, 1, 0, 0])
    right = calibrate_latency(table(0.0), points, weights=[0, 0, 1, 1])
    assert left.scale == pytest.approx(1.0, rel=0.02)
    assert right.scale == pytest.approx(1.3, rel=0.02)


@pytest.mark.parametrize("points", [[], [(1.0, 0.0)], [(-1.0, 1.0)], [(1.0, float("nan"))]])
def test_unusable_points_are_refused(points):
    with pytest.raises(UsageError, match="measured"):
        calibrate_latency(table(), points)


def test_random_plans_are_distinct_valid_and_spread():
    net = network()
    plans = random_solutions(net, net.candidates(), 12, seed=3)
    assert len(set(plans)) == 12
    for act_pos, merge_pos in plans:
        net.segments_of(merge_pos)  # raises where a segment crosses the residual
        assert set(act_pos) <= set(merge_pos)
        assert 8 in merge_pos
    counts = [len(merge_pos) for _, merge_pos in plans]
    assert counts[0] > counts[-1]
    assert max(counts) - min(counts) >= 3


def test_random_plans_leave_out_what_is_far_slower_than_it_replaces():
    net = network(4)
    entries = [
        LatencyEntry(start=s.start, end=s.end, latency_ms=1.0 if s.num_layers < 3 else 50.0) for s in net.candidates()
    ]
    plans = random_solutions(net, net.candidates(), 5, seed=1, table=LatencyTable(entries))
    assert all(s.num_layers < 3 for _, merge_pos in plans for s in net.segments_of(merge_pos))


def test_random_plans_repeat_with_the_seed():
    net = network()
    assert random_solutions(net, net.candidates(), 5, 7) == random_solutions(net, net.candidates(), 5, 7)
