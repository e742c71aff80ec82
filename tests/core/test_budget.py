"""Budgets against an oracle that asks every point of an interval, at and beside each boundary."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

import pytest

from layerfold.budget import Budget, Verdict, check_one_given
from layerfold.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Reading:
    original_ms: float = 8.0
    low_ms: float
    high_ms: float
    ratio_low: float
    ratio_high: float


def points(low: float, high: float) -> list[Fraction]:
    first, last = Fraction(low), Fraction(high)
    return [first + (last - first) * Fraction(step, 4) for step in range(5)]


def oracle(found: Reading, margin: float, *, budget_ms: float | None = None, speedup: float | None = None) -> Verdict:
    """Ask each latency, and each ratio, that the intervals hold; a speed-up as products, in exact numbers."""
    share = 1 - Fraction(margin)
    latencies = points(found.low_ms, found.high_ms)
    if speedup is None:
        assert budget_ms is not None
        fits = [each <= share * Fraction(budget_ms) for each in latencies]
        also = fits
    else:
        fits = [each * Fraction(speedup) <= share for each in points(found.ratio_low, found.ratio_high)]
        also = [each * Fraction(speedup) <= share * Fraction(found.original_ms) for each in latencies]
    if not any(fits):
        return Verdict.BREAKS
    return Verdict.KEEPS if all(fits) and all(also) else Verdict.OPEN


# Powers of two and their sums: every product is exact, so that a boundary is hit and not only come close to.
EDGES_MS = [1.0, 1.5, 1.5 + 2**-40, 2.0, 2.0 + 2**-40, 3.0, 4.0, 5.0]
INTERVALS = [(low, high) for low, high in itertools.product(EDGES_MS, EDGES_MS) if low <= high]
MARGINS = [0.0, 0.25, 0.5]


@pytest.mark.parametrize("margin", MARGINS)
def test_verdict_on_milliseconds_is_what_every_point_of_the_interval_says(margin: float) -> None:
    seen: Counter[Verdict] = Counter()
    for low, high in INTERVALS:
        for budget_ms in (0.5, 1.5, 2.0, 3.0, 4.0, 8.0):
            found = Reading(low_ms=low, high_ms=high, ratio_low=9.0, ratio_high=9.0)  # ratios do not count here
            verdict = Budget(budget_ms=budget_ms).verdict(found, margin)
            assert verdict is oracle(found, margin, budget_ms=budget_ms), (low, high, budget_ms)
            seen[verdict] += 1
    assert set(seen) == {*Verdict}


@pytest.mark.parametrize("margin", MARGINS)
def test_verdict_on_a_speedup_is_what_every_ratio_and_latency_says(margin: float) -> None:
    seen: Counter[Verdict] = Counter()
    for speedup, (ratio_low, ratio_high), (low, high) in itertools.product((1.0, 2.0, 4.0), INTERVALS, INTERVALS[::3]):
        found = Reading(low_ms=low, high_ms=high, ratio_low=ratio_low / 8, ratio_high=ratio_high / 8)
        verdict = Budget(speedup=speedup).verdict(found, margin)
        assert verdict is oracle(found, margin, speedup=speedup), (found, speedup)
        seen[verdict] += 1
    assert set(seen) == {*Verdict}


@pytest.mark.parametrize(
    ("low_ms", "high_ms", "margin", "verdict"),
    [
        (3.0, 4.0, 0.0, Verdict.KEEPS),  # the upper end is the budget
        (3.0, 4.0 + 2**-50, 0.0, Verdict.OPEN),
        (3.0, 4.0, 0.25, Verdict.OPEN),  # the lower end is what the margin leaves
        (2.0, 3.0, 0.25, Verdict.KEEPS),
        (3.0 + 2**-50, 4.0, 0.25, Verdict.BREAKS),
        (4.0, 5.0, 0.0, Verdict.OPEN),  # the lower end is the budget
        (4.0 + 2**-48, 5.0, 0.0, Verdict.BREAKS),
    ],
)
def test_ends_that_lie_on_the_limit_keep_it(low_ms: float, high_ms: float, margin: float, verdict: Verdict) -> None:
    found = Reading(low_ms=low_ms, high_ms=high_ms, ratio_low=low_ms / 8, ratio_high=high_ms / 8)
    assert Budget(budget_ms=4.0).verdict(found, margin) is verdict
    assert Budget(speedup=2.0).verdict(found, margin) is verdict
    assert Budget(speedup=2.0).is_kept_by(found, margin) == (verdict is Verdict.KEEPS)


def test_what_keeps_a_margin_keeps_a_smaller_one_whatever_the_rounding() -> None:
    for budget in (Budget(budget_ms=0.3), Budget(speedup=1.1), Budget(speedup=3.7)):
        limits = [budget.in_ms(0.7, number / 1000) for number in range(1000)]
        assert limits == sorted(limits, reverse=True)
        for margin, high_ms in enumerate(limits):
            ratio = (1 - margin / 1000) / (budget.speedup or 1.0)
            found = Reading(original_ms=0.7, low_ms=high_ms, high_ms=high_ms, ratio_low=ratio, ratio_high=ratio)
            assert budget.is_kept_by(found, margin / 1000)
            assert budget.is_kept_by(found)


def test_fastest_plan_has_no_limit() -> None:
    found = Reading(low_ms=1e9, high_ms=1e9, ratio_low=1e9, ratio_high=1e9)
    assert Budget().is_fastest
    assert Budget().verdict(found, 0.5) is Verdict.KEEPS
    assert Budget().in_ms(9.0) == 0.0
    assert str(Budget()) == "the fastest plan"


def test_limit_beside_an_original_and_the_words_for_it() -> None:
    milliseconds, speedup = Budget(budget_ms=2.0), Budget(speedup=1.5)
    assert (milliseconds.in_ms(9.0), speedup.in_ms(9.0)) == (2.0, 6.0)
    assert (milliseconds.in_ms(9.0, 0.25), speedup.in_ms(9.0, 0.25)) == (1.5, 4.5)
    assert (milliseconds.said(2.0), speedup.said(6.0)) == ("2 ms", "1.5x (6 ms)")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget_ms": 0.0}, "budget_ms=0.0: must be above 0"),
        ({"budget_ms": float("inf")}, "budget_ms=inf: must be above 0"),
        ({"speedup": float("nan")}, "speedup=nan: must be above 0"),
        ({"speedup": "1.5"}, "speedup='1.5': must be a number, got a str"),
        ({"budget_ms": 1.0, "speedup": 2.0}, "budget_ms=1.0, speedup=2.0: give one of the two"),
    ],
)
def test_what_is_no_budget_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "asked",
    [
        {"--keep": None, "--fastest": False},
        {"--keep": 1.0, "--fastest": True},
        {"--keep": 0.0, "--fastest": True},
    ],
)
def test_none_or_several_are_refused_by_name(asked: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"^--keep, --fastest: give one$"):
        check_one_given(asked, "give one")
    with pytest.raises(UsageError, match=r"^keep=\S+, fastest=(True|False): give one$"):
        check_one_given({name[2:]: value for name, value in asked.items()}, "give one")


def test_one_that_is_zero_is_given() -> None:
    check_one_given({"keep": 0.0, "fastest": False}, "give one")
