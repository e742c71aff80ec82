"""Bayesian regression of changes on measured plans: against its textbook form, and on a machine that is made up."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from layerfold.errors import MissingEntryError, TableError
from layerfold.profiler.plans.beliefs import TERMS, Beliefs, SegmentFacts, _prior_terms
from layerfold.profiler.plans.fitted import beliefs_of, fitted_table, plans_of
from layerfold.profiler.plans.plan import MeasuredPlan, pooled_plans
from layerfold.tables import LatencyEntry, LatencyTable, Provenance

CHAINS = ((0, 6), (6, 10))
SCALES = {"merged": 0.1, "replaced": 0.2, "layers": 0.05, "shape": 0.1, "segment": 0.15, "noise": 0.01}


def facts() -> list[SegmentFacts]:
    keys = [(a, b) for start, end in CHAINS for a in range(start, end) for b in range(a + 2, min(a + 4, end) + 1)]
    return [
        SegmentFacts(start=a, end=b, merged=0.06 * (b - a) - 0.01 * (a % 3), replaced=0.1 * (b - a), shape=str(b - a))
        for a, b in keys
    ]


def random_stops(rng: random.Random, keys: set[tuple[int, int]]) -> tuple[int, ...]:
    stops: list[int] = []
    for start, end in CHAINS:
        at = start
        while at < end:
            ends = [b for a, b in keys if a == at]
            at = rng.choice([at + 1, *ends])
            stops.append(at)
    return tuple(stops)


def measured(stops: tuple[int, ...], ratio: float, error: float = 0.005) -> MeasuredPlan:
    return MeasuredPlan(act_pos=(), merge_pos=stops, ratio=ratio, low=ratio - 1.96 * error, high=ratio + 1.96 * error)


class Machine:
    """Changes that differ from what the segments alone suggest, and a noisy clock."""

    def __init__(self, seed: int, noise: float) -> None:
        self.rng = random.Random(seed)
        self.noise = noise
        self.change = {s.key: 1.2 * s.merged * self.rng.uniform(0.8, 1.2) - 0.9 * s.replaced for s in facts()}

    def ratio(self, stops: tuple[int, ...]) -> float:
        total = 1.0
        for start, end in CHAINS:
            inner = [start, *(m for m in stops if start < m < end), end]
            total += sum(self.change[pair] for pair in itertools.pairwise(inner) if pair[1] - pair[0] > 1)
        return total

    def measure(self, stops: tuple[int, ...]) -> MeasuredPlan:
        return measured(stops, self.ratio(stops) + self.rng.gauss(0, self.noise), self.noise)

    def plans(self, count: int) -> list[MeasuredPlan]:
        return [self.measure(random_stops(self.rng, set(self.change))) for _ in range(count)]


def test_posterior_equals_the_weight_space_form() -> None:
    """An oracle that inverts precisions instead of covariances."""
    plans = Machine(1, 0.005).plans(5)
    beliefs = Beliefs(facts(), CHAINS, plans, scales=SCALES)
    prior = sum(SCALES[name] ** 2 * _prior_terms(facts())[name] for name in TERMS)
    rows = np.array([beliefs._row(plan.merge_pos) for plan in plans])
    noise = np.array([plan.deviation**2 + (SCALES["noise"] * plan.ratio) ** 2 for plan in plans])
    precision = np.linalg.inv(prior) + rows.T @ np.diag(1 / noise) @ rows
    mean0 = np.array([s.merged - s.replaced for s in facts()])
    seen = np.array([plan.ratio - 1 for plan in plans])
    expected = mean0 + np.linalg.solve(precision, rows.T @ ((seen - rows @ mean0) / noise))
    deviations = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert [each[0] for each in beliefs.changes.values()] == pytest.approx(expected.tolist(), abs=1e-9)
    assert [each[1] for each in beliefs.changes.values()] == pytest.approx(deviations.tolist(), rel=1e-6)


def test_held_out_equals_really_leaving_each_plan_out() -> None:
    plans = Machine(2, 0.004).plans(5)
    beliefs = Beliefs(facts(), CHAINS, plans, scales=SCALES)
    for index, found in enumerate(beliefs.held_out):
        without = Beliefs(facts(), CHAINS, plans[:index] + plans[index + 1 :], scales=SCALES)
        mean, covariance = without._posterior
        row = without._row(plans[index].merge_pos)
        assert found.ratio == pytest.approx(1 + row @ mean, abs=1e-9)
        noise = plans[index].deviation ** 2 + (SCALES["noise"] * plans[index].ratio) ** 2
        assert found.deviation == pytest.approx(math.sqrt(row @ covariance @ row + noise), rel=1e-6)


def test_without_plans_a_change_is_what_the_segments_alone_suggest() -> None:
    beliefs = Beliefs(facts(), CHAINS)
    assert beliefs.predict(range(1, 11)).ratio == 1.0
    assert beliefs.predict(range(1, 11)).deviation == 0.0
    first = facts()[0]
    found = beliefs.predict([m for m in range(1, 11) if not first.start < m < first.end])
    assert found.ratio == pytest.approx(1 + first.merged - first.replaced)
    assert found.deviation > 0.1 * first.merged


def test_plans_make_predictions_right_and_intervals_honest() -> None:
    inside, errors, before = [], [], []
    for seed in range(8):
        machine = Machine(seed, 0.008)
        beliefs = Beliefs(facts(), CHAINS, pooled_plans(machine.plans(40)))
        untrained = Beliefs(facts(), CHAINS)
        for plan in machine.plans(20):
            found, true = beliefs.predict(plan.merge_pos), machine.ratio(plan.merge_pos)
            inside.append(found.low <= true <= found.high)
            errors.append(abs(found.ratio / true - 1))
            before.append(abs(untrained.predict(plan.merge_pos).ratio / true - 1))
    assert sorted(errors)[len(errors) // 2] < 0.01
    assert sorted(before)[len(before) // 2] > 0.05
    assert sum(inside) / len(inside) >= 0.9


def test_one_reading_that_is_far_off_does_not_spoil_the_rest() -> None:
    machine = Machine(3, 0.004)
    plans = machine.plans(30)
    spoilt = [measured(plans[0].merge_pos, 3 * plans[0].ratio, 0.004), *plans[1:]]
    beliefs = Beliefs(facts(), CHAINS, pooled_plans(spoilt))
    errors = sorted(abs(beliefs.predict(p.merge_pos).ratio / machine.ratio(p.merge_pos) - 1) for p in machine.plans(30))
    assert errors[15] < 0.02


def test_informative_plans_leave_less_doubt_than_the_first_ones() -> None:
    machine = Machine(4, 0.004)
    beliefs = Beliefs(facts(), CHAINS, scales=SCALES)
    pool = [plan.plan for plan in machine.plans(60)]
    chosen = beliefs.most_informative(pool, 8)
    assert len(set(chosen)) == 8

    def doubt(indices: list[int]) -> float:
        seen = Beliefs(
            beliefs.segments,
            beliefs.chains,
            [machine.measure(pool[i].merge_pos) for i in indices],
            scales=beliefs.scales,
        )
        return sum(seen.predict(plan.merge_pos).deviation ** 2 for plan in pool)

    assert doubt(chosen) < doubt(list(range(8)))


def test_segment_that_is_no_candidate_is_named() -> None:
    with pytest.raises(MissingEntryError, match=r"\(0, 6\)"):
        Beliefs(facts(), CHAINS).predict([6, 10])


def isolated_table() -> LatencyTable:
    entries = [LatencyEntry(start=m, end=m + 1, latency_ms=0.5) for m in range(10)]
    entries += [LatencyEntry(start=s.start, end=s.end, latency_ms=5 * s.merged) for s in facts()]
    return LatencyTable(entries, provenance=Provenance(kind="latency", chains=CHAINS, fixed_ms=0.4))


def test_fitted_table_adds_up_to_the_beliefs_and_survives_its_file(tmp_path) -> None:
    machine = Machine(5, 0.004)
    table = fitted_table(isolated_table(), beliefs_of(isolated_table()), original_ms=4.0)
    assert table.original_ms == pytest.approx(4.0)
    beliefs = beliefs_of(table, machine.plans(25))
    table = fitted_table(table, beliefs)
    for plan in machine.plans(10):
        expected = 4.0 * beliefs.predict(plan.merge_pos).ratio
        assert table.end_to_end_ms(table.sum_ms(table.segments_of(plan.merge_pos))) == pytest.approx(expected)
    table.write(tmp_path / "t.csv")
    again = LatencyTable.read(tmp_path / "t.csv")
    assert len(plans_of(again)) == len(beliefs.measured)
    stops = machine.plans(1)[0].merge_pos
    assert beliefs_of(again).predict(stops).ratio == pytest.approx(beliefs.predict(stops).ratio)


def test_options_with_dropped_layers_are_segments_of_their_own(tmp_path) -> None:
    entries = [
        *isolated_table().entries,
        LatencyEntry(start=0, end=2, latency_ms=0.45, merged="3x3", kept=(1,)),
        LatencyEntry(start=2, end=3, latency_ms=0.0, merged="identity", kept=()),
    ]
    alone = LatencyTable(entries, provenance=isolated_table().provenance)
    base = beliefs_of(alone)
    stops = tuple(range(2, 11))
    kept, dropped = base.predict(stops).ratio, base.predict(stops, [2]).ratio
    assert kept != pytest.approx(dropped)
    assert base.predict(stops, [2, 3]).ratio == pytest.approx(dropped - 0.5 / alone.original_ms)
    with pytest.raises(MissingEntryError, match=r"\(3, 4\) without 4;"):
        base.predict(stops, [4])
    plan = MeasuredPlan(act_pos=(), merge_pos=stops, ratio=0.8, low=0.799, high=0.801, dropped=(2, 3))
    table = fitted_table(alone, Beliefs(base.segments, base.chains, [plan] * 4))
    learnt = beliefs_of(table)
    assert abs(learnt.predict(stops, [2, 3]).ratio - 0.8) < abs(base.predict(stops, [2, 3]).ratio - 0.8)
    table.write(tmp_path / "t.csv")
    again = LatencyTable.read(tmp_path / "t.csv")
    assert plans_of(again)[0].dropped == (2, 3)
    assert beliefs_of(again).predict(stops, [2, 3]).ratio == pytest.approx(learnt.predict(stops, [2, 3]).ratio)
    assert table.at((2, 3, "identity")).latency_ms >= 0.0


def test_rows_that_do_not_say_which_layers_stay_are_passed_over() -> None:
    entries = [*isolated_table().entries, LatencyEntry(start=0, end=2, latency_ms=0.6, merged="3x3", drops=True)]
    alone = LatencyTable(entries, provenance=isolated_table().provenance)
    assert len(beliefs_of(alone).segments) == len(facts())
    assert fitted_table(alone, beliefs_of(alone)).at((0, 2, "3x3")).latency_ms == pytest.approx(0.6)


def test_damaged_sidecar_is_one_line(tmp_path) -> None:
    table = fitted_table(isolated_table(), beliefs_of(isolated_table(), Machine(5, 0.004).plans(3)))
    broken = LatencyTable(
        table.entries,
        provenance=Provenance(chains=CHAINS, options={**table.provenance.options, "plans": [{"ratio": 1}]}),
        source="t.csv",
    )
    with pytest.raises(TableError, match=r"t\.csv: options\.plans of its sidecar is damaged"):
        beliefs_of(broken)
    short = LatencyTable(table.entries[:-1], provenance=table.provenance, source="t.csv")
    with pytest.raises(TableError, match="does not go with its"):
        beliefs_of(short)
