"""What a search is to reach: a number of gates that stay on, or a latency, and the best choice of gates for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import InfeasibleBudgetError, UsageError
from layerfold.graph.network import Network
from layerfold.search._gates import Gate
from layerfold.search._merging import BestMerging, predict_gates_ms
from layerfold.solver.labels import least_to_go
from layerfold.solver.options import ChainOptions, StretchPlan, chain_options
from layerfold.solver.search import solve_options

_ROUNDING = 1e-12
_WORTHLESS = 1e-6
"""Worth of a gate with no positive score, relative to the highest: it goes only where that buys time."""
_QUICK_LABELS = 1000


class Target(Protocol):
    """Chooses which gates are on."""

    def choose(self, scores: Sequence[float], share: float) -> tuple[bool, ...]:
        """Return which gates are on.

        Args:
            scores: one a gate; higher stays.
            share: 0 for all gates on, 1 for the target itself, between them a part of the way.
        """

    def describe(self) -> dict[str, float]:
        """Return what is wanted, by the name of the argument."""


class NumberTarget:
    """As many gates on as asked for, those of the highest scores; of equal ones, the first.

    Args:
        num_gates: how many there are.
        keep: how many are to stay on; a float below 1 is a share of them, rounded down.

    Raises:
        UsageError: fewer than 0, or more than there are.
    """

    def __init__(self, num_gates: int, keep: float) -> None:
        is_share = isinstance(keep, float) and 0 < keep < 1
        if isinstance(keep, bool) or not (is_share or (keep == int(keep) and 0 <= keep <= num_gates)):
            raise UsageError(
                f"keep={keep!r}: must be a whole number from 0 to {num_gates}, the number of gates, or a "
                "share of them below 1"
            )
        self._num_gates, self._keep = num_gates, int(keep * num_gates) if is_share else int(keep)

    def choose(self, scores: Sequence[float], share: float) -> tuple[bool, ...]:
        number = round(self._num_gates + share * (self._keep - self._num_gates))
        ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        kept = set(ranked[:number])
        return tuple(index in kept for index in range(len(scores)))

    def describe(self) -> dict[str, float]:
        return {"keep": self._keep}


class BudgetTarget:
    """The gates on that keep the predicted latency within a budget with the highest sum of scores, exactly.

    Turning gates off frees segments between the activations that are left, and stage 1 says what those cost. So the
    choice is a path through each chain, from activation to activation: an option costs the optimal latency of what
    lies between, and gains less the scores of the gates inside. That is what the solver solves.

    Args:
        net: the network.
        gates: its gates.
        merging: stage 1 of the latency table.
        budget_ms: end-to-end latency.

    Raises:
        InfeasibleBudgetError: no choice of gates keeps to it; names the least.
    """

    def __init__(self, net: Network, gates: Sequence[Gate], merging: BestMerging, budget_ms: float) -> None:
        if not 0 < budget_ms < math.inf:
            raise UsageError(f"budget_ms={budget_ms}: must be above 0 milliseconds")
        self._budget_ms, self._merging, self._gates = budget_ms, merging, gates
        self._chains: list[tuple[ChainOptions, NDArray[np.float64]]] = [
            _options_of(net, chain, gates, merging) for chain in merging.table.chains
        ]
        self._to_go = [least_to_go(options) for options, _ in self._chains]
        self._least_ms = merging.table.end_to_end_ms(math.fsum(float(each[1, 0]) for each in self._to_go))
        if self._least_ms > budget_ms * (1 + _ROUNDING):
            are_blocks = any(len(gate.positions) > 1 for gate in gates)
            raise InfeasibleBudgetError(
                f"budget {budget_ms:.6g} ms: no choice of {len(gates)} gates reaches it, the least predicted latency "
                f"is {math.ceil(self._least_ms * 1e4) / 1e4:.10g} ms; ask for that or more"
                f"{', or let slots go one by one (granularity slot)' if are_blocks else ''}",
                budget_ms=budget_ms,
                least_ms=self._least_ms,
            )
        self._all_on_ms = merging.predict_ms(merging.net.original_act_pos)

    def choose(self, scores: Sequence[float], share: float) -> tuple[bool, ...]:
        limit_ms = self._all_on_ms + share * (self._budget_ms - self._all_on_ms)
        if limit_ms >= self._all_on_ms:
            return (True,) * len(scores)
        highest = max(max(scores), 0.0) or 1.0
        worths = np.maximum(scores, _WORTHLESS * highest)
        # On the way a choice that may miss the best by little will do; the last one is exact.
        labels = 20_000 if share >= 1 else _QUICK_LABELS
        cap = np.array([self._merging.sum_of_ms(max(limit_ms, self._least_ms)) * (1 + _ROUNDING)])
        chains = [replace(options, importances=-(inside @ worths)) for options, inside in self._chains]
        found = solve_options(chains, self._to_go, caps=cap, max_labels=labels)
        assert found is not None  # checked when made: the least is within every limit
        for point in range(len(found.summed.importances) - 1, -1, -1):
            off = np.zeros(len(scores))
            for place, chain in enumerate(found.summed.chains):
                inside = self._chains[place][1]
                off += inside[chain.path(int(found.summed.choice[point, place]))].sum(axis=0)
            on = tuple(bool(value == 0) for value in off)
            # Sums here are rounded another way than those of the table: only what the table says counts.
            if predict_gates_ms(self._merging, self._gates, on) <= limit_ms or point == 0:
                return on
        raise AssertionError("a frontier has a point")

    def describe(self) -> dict[str, float]:
        return {"budget_ms": self._budget_ms}


def _options_of(
    net: Network, chain: tuple[int, int], gates: Sequence[Gate], merging: BestMerging
) -> tuple[ChainOptions, NDArray[np.float64]]:
    """Return a chain's options, and [options, gates]: 1 where a gate is off for the option.

    An option leads from one activation (or the chain's start) to the next (or the chain's end). It may not run over
    an activation that stays whatever happens, over a part of a gate, or over both a gate and the slot that is filled
    when it is off.
    """
    start, end = chain
    owner = {position: index for index, gate in enumerate(gates) for position in gate.positions}
    filled = {gate.fills: index for index, gate in enumerate(gates) if gate.fills is not None}
    stops = [p for p in range(start + 1, end) if net.has_activation(p) or p in filled]
    from_state, to_state, costs, offs = [], [], [], []
    for first in (start, *stops):
        for last in (*(stop for stop in stops if stop > first), end):
            between = [stop for stop in stops if first < stop < last]
            if any(stop not in owner and stop not in filled for stop in between):
                break  # further ends lie behind that activation as well
            inside = {owner[stop] for stop in between if stop in owner}
            cost_ms = merging.optimal_ms(first, last)
            is_whole = all(first < p < last for gate in inside for p in gates[gate].positions)
            skips_fill = any(filled.get(stop) in inside for stop in between)
            # A slot that is filled only when its gate is off: the gate's activations must lie inside.
            is_empty = last in filled and last != end and filled[last] not in inside
            if not math.isfinite(cost_ms) or not is_whole or skips_fill or is_empty:
                continue
            off = np.zeros(len(gates))
            off[list(inside)] = 1
            from_state.append(2 * (first - start) + 1)
            to_state.append(2 * (last - start) + (1 if last < end or net.has_activation(end) else 0))
            costs.append(cost_ms)
            offs.append(off)
    order = np.lexsort((from_state, to_state))
    options = chain_options(
        chain=chain,
        from_state=np.array(from_state, dtype=np.int64),
        to_state=np.array(to_state, dtype=np.int64),
        costs=np.array(costs)[:, None],
        importances=np.zeros(len(costs)),
        plan_of=lambda index: StretchPlan(breaks=()),
    )
    return options, np.array(offs)[order]
