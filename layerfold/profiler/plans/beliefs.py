"""Entries that add up: Bayesian linear regression of segments' changes on measured whole networks.

A plan's latency, relative to the original's, is taken to be one plus the changes that its changed segments make (those
merged, and those with layers that a lever changed):

    ratio(plan) = 1 + sum of change[s] over changed segments s + noise

Before any plan is measured, a change is believed to be what the segments alone suggest, the merged one less those it
replaces, with a Gaussian uncertainty whose parts are *terms*: the cost of whatever is merged and of whatever is
replaced is off by a common factor (caches, memory layouts), each layer removed saves a constant, segments of the
same shape are off alike, and each segment is off by itself. How large each part is, and how noisy the machine, is read
off the measured plans by maximising their marginal likelihood. All of it is closed form: a plan measured is a row,
and the posterior gives every segment's change, the latency of any plan, and how sure both are.

Reference: Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), sections 2.1, 2.7 and 5.4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import MissingEntryError
from layerfold.profiler.plans.plan import MeasuredPlan, Plan
from layerfold.tables.kernel import IDENTITY, SegmentKey
from layerfold.tables.levers import DROP, Change, changes_within, lever_of

Floats = NDArray[np.float64]

TERMS = ("merged", "replaced", "layers", "shape", "segment")
"""Names of the prior's parts, in the order of ``Beliefs.scales``."""
_GRIDS: Mapping[str, tuple[float, ...]] = {
    "merged": (0.02, 0.05, 0.1, 0.2, 0.4),
    "replaced": (0.02, 0.05, 0.1, 0.2, 0.4),
    "layers": (0.0, 0.02, 0.05, 0.1, 0.2, 0.4),
    "shape": (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45),
    "segment": (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45),
    "noise": (0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03),
}
_START = {"merged": 0.1, "replaced": 0.1, "layers": 0.05, "shape": 0.15, "segment": 0.15, "noise": 0.01}
_SWEEPS = 4
_LEAST_SCALE = 1e-3
_OUTLIER = 3.0
_OUTLIER_ROUNDS = 3
_LEAST_TO_JUDGE = 10
_FLOOR = 0.1
_TWO_SIDED_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class SegmentFacts:
    """Facts of a changed segment that are known before any plan is measured.

    Attributes:
        start, end: positions; at least two layers, or one that is changed.
        merged, replaced: latency of the segment alone and of its layers, relative to the original network.
        shape: equal for segments that do the same in place of the same.
        change: what a lever changes of its layers; None for nothing.
        kernel: what it merges into, where layers are changed.
    """

    start: int
    end: int
    merged: float
    replaced: float
    shape: str
    change: Change | None = None
    kernel: str = ""

    @property
    def key(self) -> SegmentKey:
        return (self.start, self.end) if self.change is None else (self.start, self.end, self.kernel)


@dataclass(frozen=True, kw_only=True)
class PlanPrediction:
    """A plan's latency relative to the original's: expected value and standard deviation.

    Attributes:
        ratio: expected latency / original latency.
        deviation: standard deviation of the plan's true ratio.
    """

    ratio: float
    deviation: float

    @property
    def low(self) -> float:
        return self.ratio - _TWO_SIDED_95 * self.deviation

    @property
    def high(self) -> float:
        return self.ratio + _TWO_SIDED_95 * self.deviation


class Beliefs:
    """Gaussian beliefs about the changes that changed segments make, given measured plans.

    Args:
        segments: every changed segment that may be asked for.
        chains: (start, end) of every chain.
        measured: measured plans; each may appear several times.
        scales: standard deviations of the prior's terms, relative, and of the noise; None to read them off
            ``measured``.
    """

    def __init__(
        self,
        segments: Sequence[SegmentFacts],
        chains: Sequence[tuple[int, int]],
        measured: Sequence[MeasuredPlan] = (),
        *,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.segments, self.chains, self.measured = tuple(segments), tuple(chains), tuple(measured)
        self._index = {(each.start, each.end, each.change): index for index, each in enumerate(self.segments)}
        self._terms = _prior_terms(self.segments)
        self._mean = np.array([segment.merged - segment.replaced for segment in self.segments])
        rows = [self._row(*plan.plan[1:]) for plan in self.measured]
        self._rows = np.array(rows).reshape(len(rows), len(self.segments))
        self._seen = np.array([plan.ratio - 1 for plan in self.measured])
        self._errors = np.array([plan.deviation for plan in self.measured])
        self._grams = {name: self._rows @ term @ self._rows.T for name, term in self._terms.items()}
        self._inflation = np.ones(len(self.measured))
        self.scales = dict(scales) if scales is not None else self._fitted_scales()
        self._inflate_outliers()

    def predict(
        self, merge_pos: Iterable[int], dropped: Iterable[int] = (), changes: Iterable[Change] = ()
    ) -> PlanPrediction:
        """Return the latency of a plan, relative to the original.

        Raises:
            MissingEntryError: a segment that is not known.
        """
        row = self._row(merge_pos, dropped, changes)
        mean, covariance = self._posterior
        ratio = 1 + float(row @ mean)
        variance = float(row @ covariance @ row) + (self.scales["noise"] * ratio * bool(row.any())) ** 2
        return PlanPrediction(ratio=ratio, deviation=self._widening * math.sqrt(max(variance, 0.0)))

    @cached_property
    def _widening(self) -> float:
        """What deviations must be multiplied by to be as large as the errors seen when each plan is left out."""
        if len(self.measured) < _LEAST_TO_JUDGE:
            return 1.0
        squares = [
            min(abs(1 + seen - each.ratio) / each.deviation, _OUTLIER) ** 2
            for seen, each in zip(self._seen, self.held_out, strict=True)
        ]
        return max(1.0, math.sqrt(sum(squares) / len(squares)))

    @cached_property
    def changes(self) -> dict[SegmentKey, tuple[float, float]]:
        """Each changed segment's change and its standard deviation, relative to the original's latency."""
        mean, covariance = self._posterior
        deviations = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        return {
            segment.key: (float(mean[index]), float(deviations[index])) for index, segment in enumerate(self.segments)
        }

    @cached_property
    def held_out(self) -> list[PlanPrediction]:
        """For each measured plan, what the others predict of its measurement (leave one out, closed form).

        Measurements of the same plan are left out together only if they are one row; pool them first.
        """
        inverse = np.linalg.inv(self._covariance_of_seen())
        variances = 1 / np.diag(inverse)
        residuals = (inverse @ (self._seen - self._rows @ self._mean)) * variances
        return [
            PlanPrediction(ratio=float(1 + seen - residual), deviation=float(math.sqrt(variance)))
            for seen, residual, variance in zip(self._seen, residuals, variances, strict=True)
        ]

    def most_informative(self, plans: Sequence[Plan], count: int) -> list[int]:
        """Return the indices of the ``count`` plans, in order, whose measuring leaves the least variance.

        Greedy: the plan of largest variance first, then the largest given that one, and so on. Variance does not
        depend on what will be measured, so no measurement is needed in between.
        """
        rows = np.array([self._row(*plan[1:]) for plan in plans]).reshape(len(plans), len(self.segments))
        covariance = rows @ self._posterior[1] @ rows.T
        noise = self.scales["noise"] ** 2
        chosen: list[int] = []
        for _ in range(min(count, len(rows))):
            gains = np.diag(covariance).copy()
            gains[chosen] = -np.inf
            best = int(np.argmax(gains))
            chosen.append(best)
            column = covariance[:, best]
            covariance = covariance - np.outer(column, column) / (covariance[best, best] + noise)
        return chosen

    def _row(self, merge_pos: Iterable[int], dropped: Iterable[int] = (), changes: Iterable[Change] = ()) -> Floats:
        stops, every = sorted(set(merge_pos)), (Change(DROP, tuple(sorted(set(dropped)))), *changes)
        row = np.zeros(len(self.segments))
        for start, end in self.chains:
            for pair in itertools.pairwise([start, *(stop for stop in stops if start < stop < end), end]):
                parts = changes_within(every, *pair)
                if pair[1] - pair[0] > 1 or parts:
                    index = None if len(parts) > 1 else self._index.get((*pair, parts[0] if parts else None))
                    if index is None:
                        words = " and".join(f" {lever_of(each.word).phrase(each)}" for each in parts)
                        raise MissingEntryError(
                            f"no entry for segment {pair}{words}; it is no candidate, profile it first"
                        )
                    row[index] = 1.0
        return row

    def _noise_of_seen(self, noise: float) -> Floats:
        return (self._errors**2 + (noise * (1 + self._seen)) ** 2) * self._inflation

    def _covariance_of_seen(self, scales: Mapping[str, float] | None = None) -> Floats:
        scales = scales or self.scales
        total = np.diag(self._noise_of_seen(scales["noise"]))
        for name in TERMS:
            total = total + scales[name] ** 2 * self._grams[name]
        return total

    def _log_evidence(self, scales: Mapping[str, float]) -> float:
        factor = np.linalg.cholesky(self._covariance_of_seen(scales))
        white = np.linalg.solve(factor, self._seen - self._rows @ self._mean)
        return float(-0.5 * white @ white - np.log(np.diag(factor)).sum())

    def _log_score(self, scales: Mapping[str, float]) -> float:
        """Return log evidence plus log hyperprior: scales are log-normal, a factor of e around their usual values.

        Without it a few dozen plans, whose outliers look like large changes, throw the scales about.
        """
        usual = sum(math.log(max(scales[name], _LEAST_SCALE) / _START[name]) ** 2 for name in _GRIDS)
        return self._log_evidence(scales) - 0.5 * usual

    def _fitted_scales(self) -> dict[str, float]:
        """Climb the marginal likelihood times the hyperprior, one scale at a time, on a grid."""
        scales = dict(_START)
        if len(self.measured) < len(_GRIDS):
            return scales
        best = self._log_score(scales)
        for _ in range(_SWEEPS):
            before = best
            for name, grid in _GRIDS.items():
                for value in grid:
                    evidence = self._log_score({**scales, name: value})
                    if evidence > best + 1e-9:
                        best, scales = evidence, {**scales, name: value}
            if best - before < 0.01:
                break
        return scales

    def _inflate_outliers(self) -> None:
        """Give less weight to measurements that the others contradict by more than three deviations."""
        for _ in range(_OUTLIER_ROUNDS if len(self.measured) > len(TERMS) else 0):
            excess = np.array(
                [
                    abs(1 + seen - each.ratio) / each.deviation / _OUTLIER
                    for seen, each in zip(self._seen, self.held_out, strict=True)
                ]
            )
            if not (excess > 1).any():
                break
            self._inflation = np.where(excess > 1, self._inflation * excess**2, self._inflation)
            del self.held_out

    @cached_property
    def _posterior(self) -> tuple[Floats, Floats]:
        prior = np.zeros((len(self.segments), len(self.segments)))
        for name, term in self._terms.items():
            prior += self.scales[name] ** 2 * term
        if not self.measured:
            return self._mean, prior
        factor = np.linalg.cholesky(self._covariance_of_seen())
        cross = np.linalg.solve(factor, self._rows @ prior)
        white = np.linalg.solve(factor, self._seen - self._rows @ self._mean)
        return self._mean + cross.T @ white, prior - cross.T @ cross


def _prior_terms(segments: Sequence[SegmentFacts]) -> dict[str, Floats]:
    """Return each term's covariance at scale 1, [segments, segments]."""
    merged = np.array([segment.merged for segment in segments])
    replaced = np.array([segment.replaced for segment in segments])
    removed = np.array([each.end - each.start - (each.kernel != IDENTITY) for each in segments], dtype=np.float64)
    layers = max((segment.end for segment in segments), default=1)
    size = np.sqrt(merged * replaced) + _FLOOR / layers
    shapes = np.unique([segment.shape for segment in segments], return_inverse=True)[1]
    alike = (shapes[:, None] == shapes[None, :]).astype(np.float64)
    return {
        "merged": np.outer(merged, merged),
        "replaced": np.outer(replaced, replaced),
        "layers": np.outer(removed, removed) / layers**2,
        "shape": alike * np.outer(size, size),
        "segment": np.diag(size**2),
    }
