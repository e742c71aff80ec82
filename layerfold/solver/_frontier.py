"""Every Pareto-optimal solution, by rising latency: one solve answers all budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import InfeasibleBudgetError
from layerfold.files import JsonObject, csv_text, write_json, write_text
from layerfold.options.solve import SolveOptions
from layerfold.solver._refine import refine_budget
from layerfold.solver._solution import Solution, SolutionSegment
from layerfold.solver._sum import SummedFrontier
from layerfold.solver._vector_costs import CostColumns
from layerfold.solver.budgets import BudgetOf, end_to_end_budgets
from layerfold.solver.labels import ChainFrontier
from layerfold.solver.options import Option, StretchPlan
from layerfold.solver.rounding import round_to
from layerfold.solver.search import Found
from layerfold.tables import ImportanceTable, LatencyTable
from layerfold.tables.kernel import SegmentKey
from layerfold.tables.levers import DROP, MERGE_WORDS, Change

Floats = NDArray[np.float64]
_ROUNDING = 1e-12


class Frontier:
    """Non-dominated solutions; made by :func:`solve_frontier`.

    ``len``, indexing and iteration give :class:`Solution` objects by rising latency (of the first device).

    Attributes:
        latencies_ms: [points, devices] end-to-end latency of each point; with ``risk`` the latency that is
            kept with that probability.
        importances: [points] in points.
        gaps: [points] points of importance that any solution no slower could have more; all 0 where exact.
        alpha, risk: what it was solved with.

    Example:
        >>> frontier = lf.solve_frontier(latency, importance)
        >>> frontier
        Frontier(3 points, 2.6 to 4 ms)
        >>> [(point.predicted_ms, point.importance) for point in frontier]
        [(2.6, -4.0), (3.2, -1.0), (4.0, 0.0)]
        >>> frontier.at(budget_ms=3.5).merge_pos
        (1, 3)
        >>> frontier.at(speedup=1.5).predicted_ms
        2.6
    """

    def __init__(
        self,
        *,
        summed: SummedFrontier,
        points: NDArray[np.int64],
        latencies_ms: Floats,
        gaps: Floats,
        columns: CostColumns,
        importance: ImportanceTable,
        options: SolveOptions,
        found: Found,
    ) -> None:
        self._summed = summed
        self._points = points
        self._columns = columns
        self._importance = importance
        self._found = found
        self.latencies_ms = latencies_ms
        self.importances: Floats = summed.importances[points]
        self.gaps = gaps
        self.alpha, self.risk = options.alpha, options.risk

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[Solution]:
        return (self[index] for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Solution: ...
    @overload
    def __getitem__(self, index: slice) -> list[Solution]: ...
    def __getitem__(self, index: int | slice) -> Solution | list[Solution]:
        if isinstance(index, slice):
            return [self._solution(each) for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"point {index} of a frontier of {len(self)}")
        return self._solution(index % len(self))

    def __repr__(self) -> str:
        low, high = self.latencies_ms[0, 0], self.latencies_ms[-1, 0]
        return f"Frontier({len(self)} points, {low:.4g} to {high:.4g} ms)"

    @property
    def latency(self) -> LatencyTable:
        """The first device's latency table."""
        return self._columns.tables[0]

    @property
    def original_ms(self) -> float:
        """Predicted end-to-end latency of the original network on the first device."""
        return self.latency.original_ms

    @cached_property
    def least_ms(self) -> float:
        """The least reachable end-to-end latency on the first device."""
        return float(self.latencies_ms[:, 0].min())

    def at(
        self,
        *,
        budget_ms: float | Sequence[float] | None = None,
        speedup: float | None = None,
        budget_of: BudgetOf = "end-to-end",
    ) -> Solution:
        """Return the solution of highest importance within a budget; of equal ones, the fastest.

        Args:
            budget_ms: milliseconds above 0; one number per device where several were solved for.
            speedup: instead of a budget: original latency / budget, above 0; applies to every device.
            budget_of: ``end-to-end``, or ``segments`` for the bare sum of the entries (the paper's T0).

        Raises:
            InfeasibleBudgetError: names the least reachable latency.
            UsageError: neither or both of budget and speedup, or one that is not above 0.
        """
        index, budget = self._index_at(budget_ms, speedup, budget_of)
        solution = self._solution(index, budget_ms=budget)
        hull = self._found.hull
        if hull is None:
            return solution
        # What is proven for this very budget is more than for all budgets that the point answers.
        provenance = self.latency.provenance
        sum_ms = (budget - provenance.fixed_ms) / provenance.scale
        gap = max(0.0, float(hull.bound(np.array([sum_ms]))[0] - self.importances[index]))
        if gap > self._found.gap and self._found.options is not None:
            better, gap = self._refined(index, sum_ms, budget, gap)
            solution = better or solution
        return replace(solution, gap=gap, status="within" if gap else "optimal")

    def _refined(self, index: int, sum_ms: float, budget_ms: float, gap: float) -> tuple[Solution | None, float]:
        """Search this budget for what the thinned frontier may have missed; return it and the gap then proven."""
        options, hull, floor = self._found.options, self._found.hull, float(self.importances[index]) + self._found.gap
        assert options is not None and hull is not None  # noqa: PT018 - asked before
        frontier, is_done = refine_budget(options, hull, sum_ms, floor)
        if not is_done:
            return None, gap
        for point in range(len(frontier.importances) - 1, -1, -1) if frontier is not None else ():
            assert frontier is not None
            solution = self._made([(frontier, frontier.path(point))], {}, 0.0, budget_ms)
            if (solution.predicted_ms or 0.0) <= budget_ms:
                return solution, 0.0
        return None, self._found.gap

    def index_at(
        self,
        *,
        budget_ms: float | Sequence[float] | None = None,
        speedup: float | None = None,
        budget_of: BudgetOf = "end-to-end",
    ) -> int:
        """Return the index of the point that :meth:`at` gives."""
        return self._index_at(budget_ms, speedup, budget_of)[0]

    def _index_at(
        self, budget_ms: float | Sequence[float] | None, speedup: float | None, budget_of: BudgetOf
    ) -> tuple[int, float]:
        asked = end_to_end_budgets(self._columns.tables, budget_ms=budget_ms, speedup=speedup, budget_of=budget_of)
        budgets = np.array(asked, dtype=float)
        fits = np.flatnonzero((self.latencies_ms <= budgets * (1.0 + _ROUNDING)).all(axis=1))
        while len(fits):
            # Importances that differ by rounding only are equal; of those the fastest.
            highest = float(self.importances[fits].max())
            alike = fits[self.importances[fits] >= highest - _ROUNDING * (1.0 + abs(highest))]
            index = int(alike[np.lexsort((alike, self.latencies_ms[alike, 0]))[0]])
            # A point that fits by rounding only does not fit.
            if all(exact <= budget for exact, budget in zip(self._exact_ms(index), budgets.tolist(), strict=True)):
                return index, float(budgets[0])
            fits = fits[fits != index]
        raise self._infeasible(budgets, budget_of, by_speedup=speedup is not None and len(budgets) == 1)

    def knee(self) -> Solution:
        """Return the point farthest above the line from the fastest to the best point, both axes scaled to 1."""
        return self._solution(self.knee_index())

    def knee_index(self) -> int:
        """Return the index of :meth:`knee`."""
        latency, importance = self.latencies_ms[:, 0], self.importances
        across, up = np.ptp(latency), np.ptp(importance)
        if across == 0.0 or up == 0.0:
            return 0
        distance = (importance - importance.min()) / up - (latency - latency.min()) / across
        return int(distance.argmax())

    def to_json(self) -> JsonObject:
        """Return all points with what they were solved from, ready for ``json.dumps``."""
        return {
            "schema": 1,
            "model": self.latency.provenance.model,
            "original_ms": self.original_ms,
            "alpha": self.alpha,
            "risk": self.risk,
            "tables": self._hashes,
            "points": [
                {
                    "latency_ms": self.latencies_ms[index].tolist(),
                    "importance": float(self.importances[index]),
                    "gap": float(self.gaps[index]),
                    "act_pos": list(solution.act_pos),
                    "merge_pos": list(solution.merge_pos),
                    "kept_layers": None if solution.kept_layers is None else list(solution.kept_layers),
                    **(
                        {"changes": [[word, list(layers or ())] for word, layers in made]}
                        if (made := solution.changes)
                        else {}
                    ),
                }
                for index, solution in enumerate(self)
            ],
        }

    def write_json(self, path: str | Path) -> None:
        """Write :meth:`to_json` to a file, by an atomic replace."""
        write_json(path, self.to_json())

    def write_csv(self, path: str | Path) -> None:
        """Write one row per point: latency per device, speed-up, importance, gap, act_pos, merge_pos.

        Where a point drops layers, ``kept_layers`` is one more column; where other levers change some, ``changes``.
        """
        devices = self.latencies_ms.shape[1]
        names = ["latency_ms", *(f"latency_{device + 1}_ms" for device in range(1, devices))]
        solutions = list(self)
        last = ["kept_layers"] if any(solution.kept_layers is not None for solution in solutions) else []
        last += ["changes"] if any(solution.changes for solution in solutions) else []
        header = ["id", *names, "speedup", "importance", "gap", "act_pos", "merge_pos", *last]
        rows: list[list[object]] = []
        for index, solution in enumerate(solutions):
            kept = solution.kept_layers
            changed = "; ".join(f"{word} {' '.join(map(str, layers or ()))}" for word, layers in solution.changes)
            cells = {"kept_layers": None if kept is None else tuple(kept), "changes": changed}
            first_ms = float(self.latencies_ms[index, 0])
            numbers = [*self.latencies_ms[index].tolist(), self.original_ms / first_ms if first_ms else math.inf]
            rows.append(
                [
                    index,
                    *map(float, numbers),
                    float(self.importances[index]),
                    float(self.gaps[index]),
                    tuple(solution.act_pos),
                    tuple(solution.merge_pos),
                    *(cells[name] for name in last),
                ]
            )
        write_text(Path(path), csv_text(header, rows))

    def plot(
        self, path: str | Path, *, budget_ms: float | None = None, chosen: Solution | None = None, title: str = ""
    ) -> None:
        """Draw the frontier with the original, the budget and the chosen point into an image file."""
        from layerfold.solver._plot import plot_frontier

        plot_frontier(self, Path(path), budget_ms=budget_ms, chosen=chosen, title=title)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        names = ["latency", *(f"latency_{device + 1}" for device in range(1, self._columns.num_devices))]
        hashes = {name: table.hash for name, table in zip(names, self._columns.tables, strict=True)}
        return {**hashes, "importance": self._importance.hash}

    def _infeasible(self, budgets: Floats, budget_of: BudgetOf, *, by_speedup: bool) -> InfeasibleBudgetError:
        """Return the error that names what the most demanding budget would have to be, the others as they are."""
        with np.errstate(over="ignore"):
            worst = int(np.argmax(self.latencies_ms.min(axis=0) / budgets))
        others = [device for device in range(len(budgets)) if device != worst]
        fits = np.flatnonzero((self.latencies_ms[:, others] <= budgets[others]).all(axis=1))
        point = (
            int(fits[self.latencies_ms[fits, worst].argmin()])
            if len(fits)
            else int(self.latencies_ms[:, worst].argmin())
        )
        table, asked = self._columns.tables[worst], float(budgets[worst])
        reachable = max(float(self.latencies_ms[point, worst]), self._exact_ms(point)[worst])
        speedup = f", speedup {round_to(table.original_ms / reachable, up=False)}" if by_speedup and reachable else ""
        if budget_of == "segments":
            asked = (asked - table.provenance.fixed_ms) / table.provenance.scale
            reachable = (reachable - table.provenance.fixed_ms) / table.provenance.scale * (1.0 + _ROUNDING)
        where = f" on {table.source}" if len(budgets) > 1 else ""
        with_others = " with the other budgets kept" if len(budgets) > 1 and len(fits) else ""
        together = "" if len(fits) else "; no plan meets the other budgets either"
        return InfeasibleBudgetError(
            f"budget {asked:.6g} ms{where}: no plan meets it, the least reachable latency{with_others} is "
            f"{round_to(reachable, up=True, digits=6)} ms{speedup}{together}; raise the budget or widen the candidates",
            budget_ms=asked,
            least_ms=reachable,
        )

    def _exact_ms(self, index: int) -> list[float]:
        """Return the latency on each device from exactly rounded sums."""
        keys = _keys_of(self._paths(index))
        found = []
        for table in self._columns.tables:
            entries = [table.at(key) for key in keys]
            sum_ms = math.fsum(entry.latency_ms for entry in entries)
            if self.risk is not None:
                from layerfold.solver._risk import quantile

                sum_ms += quantile(self.risk) * math.sqrt(math.fsum(entry.spread_ms**2 for entry in entries))
            found.append(table.end_to_end_ms(sum_ms))
        return found

    def options_of(self, index: int) -> list[Option]:
        """Return the options that make up point ``index``, in order of position."""
        return [chain.options.option(each) for chain, path in self._paths(index) for each in path]

    def _paths(self, index: int) -> list[tuple[ChainFrontier, list[int]]]:
        choice = self._summed.choice[self._points[index]]
        return [(chain, chain.path(int(point))) for chain, point in zip(self._summed.chains, choice, strict=True)]

    def _solution(self, index: int, *, budget_ms: float | None = None) -> Solution:
        costs = {}
        if self.risk is not None:
            costs["latency_at_risk_ms"] = float(self.latencies_ms[index, 0])
        caps = self._summed.costs[self._points[index], self._columns.count - len(self._columns.caps) :]
        costs.update({name: float(value) for (name, _), value in zip(self._columns.caps, caps, strict=True)})
        return self._made(self._paths(index), costs, float(self.gaps[index]), budget_ms)

    def _made(
        self,
        paths: Sequence[tuple[ChainFrontier, list[int]]],
        costs: dict[str, float],
        gap: float,
        budget_ms: float | None,
    ) -> Solution:
        """Make a solution of one path of options through each chain."""
        import layerfold

        acts, importances = [], []
        for chain, path in paths:
            ends = chain.options.to_state[path]
            acts += [int(state) // 2 + chain.options.chain[0] for state in ends if state % 2]
            importances += chain.options.importances[path].tolist()
        plans = [chain.options.plan_of(option) for chain, path in paths for option in path]
        keys = [key for plan in plans for key in plan.keys]
        latency = self.latency
        further = {
            f"latency_{device}_ms": table.end_to_end_ms(table.sum_ms(keys))
            for device, table in enumerate(self._columns.tables[1:], start=2)
        }
        return Solution(
            act_pos=tuple(acts),
            merge_pos=tuple(key[1] for key in keys),
            kept_layers=self._kept_layers(plans),
            model=latency.provenance.model,
            network_hash=latency.provenance.network_hash,
            budget_ms=budget_ms,
            predicted_ms=latency.end_to_end_ms(latency.sum_ms(keys)),
            importance=math.fsum(importances),
            segments=tuple(
                _segment(key, plan.change, latency.at(key).latency_ms) for plan in plans for key in plan.keys
            ),
            table_hashes=self._hashes,
            version=layerfold.__version__,
            status="within" if gap else "optimal",
            gap=gap,
            costs={**further, **costs},
        )

    def _kept_layers(self, plans: Sequence[StretchPlan]) -> tuple[int, ...] | None:
        """Return the layers that stay, or None where no layer is dropped."""
        changes = [plan.change for plan in plans if plan.change is not None]
        lost = {index for change in changes if change.lever == DROP for index in change.layers or ()}
        if not lost:
            return None
        return tuple(
            index for start, end in self.latency.chains for index in range(start + 1, end + 1) if index not in lost
        )


def _keys_of(paths: Sequence[tuple[ChainFrontier, list[int]]]) -> list[SegmentKey]:
    return [key for chain, path in paths for option in path for key in chain.options.plan_of(option).keys]


def _segment(key: SegmentKey, change: Change | None, latency_ms: float) -> SolutionSegment:
    """Return a part of a stretch; which layers are dropped is said once, by the solution's ``kept_layers``."""
    start, end = key[:2]
    part = None if change is None else change.within(start, end)
    if part is None:
        return SolutionSegment(start=start, end=end, plan=MERGE_WORDS[end > start + 1], latency_ms=latency_ms)
    layers = () if part.lever == DROP else part.layers or ()
    kernel = key[2] if len(key) > 2 else ""
    return SolutionSegment(start=start, end=end, plan=part.word, latency_ms=latency_ms, kernel=kernel, layers=layers)
