"""Statistics of blocks against SciPy and against what is known by construction."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from scipy import stats

from layerfold.profiler.store.checked import reading_of
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.block_statistics import QUANTILES, kendall_p_value, outliers, quantiles, trend
from layerfold.profiler.timing.clock import TIMER_SHARE, least_block_ms, time_passes, timer_cost_ms
from layerfold.profiler.timing.measurement import summarise_blocks


@pytest.mark.parametrize("count", [1, 2, 7, 10, 33])
def test_quantiles_match_numpy(count):
    values = [random.Random(count).random() for _ in range(count)]
    assert quantiles(values) == pytest.approx(np.quantile(values, QUANTILES))


@pytest.mark.parametrize("seed", range(5))
def test_trend_test_matches_scipy_with_and_without_ties(seed):
    rng = random.Random(seed)
    values = [rng.choice([1.0, 2.0, 3.0, rng.random()]) + 0.01 * seed * i for i in range(40)]
    expected = stats.kendalltau(range(len(values)), values, method="asymptotic").pvalue
    assert kendall_p_value(values) == pytest.approx(expected, rel=1e-9)


def test_a_machine_that_slows_by_a_tenth_is_called_drifting_and_a_steady_one_is_not():
    rng = random.Random(0)
    noise = [1 + 0.01 * rng.gauss(0, 1) for _ in range(1000)]
    assert trend(noise) == 0.0
    assert trend([value * (1 + 0.1 * i / 999) for i, value in enumerate(noise)]) == pytest.approx(0.067, abs=0.01)
    assert trend([value * (1 - 0.1 * i / 999) for i, value in enumerate(noise)]) < -0.05


def test_few_steady_measurements_are_called_drifting_by_chance():
    rng = random.Random(1)
    found = sum(trend([rng.random() for _ in range(20)]) != 0 for _ in range(2000))
    assert found <= 12  # 0.1 % of 2,000 is 2


def test_an_outlier_is_counted_its_size_kept_and_left_in():
    steady = [1.0 + 0.001 * (i % 7) for i in range(30)]
    found = summarise_blocks([*steady, 9.0, 5.0], runs=32, is_settled=True)
    assert (found.outliers, found.outlier_ms, found.blocks) == (2, 9.0, 32)
    assert found.quantiles_ms[-1] == 9.0
    assert summarise_blocks(steady, runs=30, is_settled=True).outliers == 0
    assert outliers([1.0] * 5) == []


def test_the_median_with_disturbed_blocks_is_kept_beside_the_one_without():
    found = summarise_blocks(
        [1.0, 1.0, 1.1, 1.1, 1.2], runs=5, is_settled=True, disturbed=4, disturbed_ms=[2.0, 2.0, 2.0, 2.0]
    )
    assert (found.median_ms, found.median_all_ms, found.disturbed) == (1.1, 1.2, 4)


def test_a_measurement_survives_its_json():
    found = summarise_blocks([1.0, 1.2, 1.1, 7.0] * 10, runs=40, is_settled=False, disturbed=1, disturbed_ms=[2.0])
    assert reading_of(Kind.ALONE, json.dumps(found.to_json())) == found


def test_the_timer_takes_less_than_a_thousandth_of_the_least_block():
    assert timer_cost_ms() > 0
    assert timer_cost_ms() < TIMER_SHARE * least_block_ms()
    empty = sorted(time_passes(lambda: None, 0) for _ in range(501))
    assert empty[250] / 1e6 < 3 * timer_cost_ms() + 1e-4  # what was measured once is what it costs now, in magnitude
