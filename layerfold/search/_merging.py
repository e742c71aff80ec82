"""From the activations that are left (A) to where merging stops (S): stage 1 of the solver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import layerfold
from layerfold.errors import MissingEntryError, ProvenanceMismatchError
from layerfold.graph.network import Network
from layerfold.search._gates import Gate, activations_left
from layerfold.solver import Solution, SolutionSegment
from layerfold.solver.stage1 import OptimalSums, optimal_sums
from layerfold.tables import LatencyEntry, LatencyTable, Provenance


class BestMerging:
    """The fastest way to merge, for any activations left.

    Args:
        net: the network.
        table: its latency table. None: as few convs as candidates allow, of as few the least multiply-adds; there are
            no latencies then.
        max_kernel: largest merged kernel where there is no table.

    Raises:
        ProvenanceMismatchError: a table of another network.
    """

    def __init__(self, net: Network, table: LatencyTable | None, *, max_kernel: int = 15) -> None:
        self.net, self.has_latencies = net, table is not None
        self.table = _count_table(net, max_kernel) if table is None else table
        chains = tuple((chain.start, chain.end) for chain in net.chains)
        known = self.table.provenance.network_hash
        if (known and known != net.hash) or self.table.chains != chains:
            raise ProvenanceMismatchError(
                f"{self.table.source}: was measured for a network of hash {known or 'unknown'} with the chains "
                f"{list(self.table.chains)}, this one has {net.hash} and {list(chains)}; profile this model with the "
                "same input size and exclusions"
            )
        entries = [entry for entry in self.table.entries if entry.change is None]
        self._sums: dict[tuple[int, int], OptimalSums] = {
            chain: optimal_sums(entries, chain) for chain in self.table.chains
        }

    def optimal_ms(self, first: int, last: int) -> float:
        """Return T_opt of layers first+1..last: the least sum of entries; infinite where no entries lead there."""
        for (start, end), sums in self._sums.items():
            if start <= first < last <= end:
                return float(sums.sums_ms[first - start, last - start])
        raise MissingEntryError(f"{self.table.source}: positions {first} and {last} lie in no common chain")

    def segments(self, act_pos: Iterable[int]) -> list[tuple[int, int]]:
        """Return the segments of the fastest merging that stops at every activation."""
        acts, found = sorted(act_pos), []
        for (start, end), sums in self._sums.items():
            stops = [start, *(position for position in acts if start < position < end), end]
            for first, last in pairwise(stops):
                if not sums.sums_ms[first - start, last - start] < float("inf"):
                    raise MissingEntryError(
                        f"{self.table.source}: no entries lead from position {first} to {last} without an activation "
                        "between; profile those segments"
                    )
                found += list(pairwise(sums.breaks(first, last)))
        return found

    def predict_ms(self, act_pos: Iterable[int]) -> float:
        """Return the end-to-end latency of that merging."""
        return self.table.end_to_end_ms(self.table.sum_ms(self.segments(act_pos)))

    def sum_of_ms(self, end_to_end_ms: float) -> float:
        """Return the sum of entries that an end-to-end latency allows."""
        return (end_to_end_ms - self.table.provenance.fixed_ms) / self.table.provenance.scale

    def solution(
        self,
        act_pos: Iterable[int],
        *,
        model: str = "",
        budget_ms: float | None = None,
        stops: Sequence[int] | None = None,
    ) -> Solution:
        """Return A with its S as a solution.

        Args:
            act_pos: A; what the original has at chain ends included.
            model: what the user calls the model.
            budget_ms: end-to-end latency that A was chosen for.
            stops: S itself, where it is given and not to be worked out.
        """
        acts = sorted(act_pos)
        segments = self.segments(acts) if stops is None else self.table.segments_of(stops)
        entries = [(start, end, self.table.entry(start, end)) for start, end in segments]
        return Solution(
            act_pos=tuple(acts),
            merge_pos=tuple(end for _, end in segments),
            model=model,
            network_hash=self.net.hash,
            budget_ms=budget_ms,
            predicted_ms=self.table.end_to_end_ms(self.table.sum_ms(segments)) if self.has_latencies else None,
            segments=tuple(
                SolutionSegment(
                    start=start,
                    end=end,
                    plan="merge" if end > start + 1 else "keep",
                    latency_ms=entry.latency_ms if self.has_latencies else None,
                )
                for start, end, entry in entries
            ),
            table_hashes={"latency": self.table.hash} if self.has_latencies else {},
            version=layerfold.__version__,
        )


def predict_gates_ms(merging: BestMerging, gates: Sequence[Gate], on: Sequence[bool]) -> float:
    """Return the predicted latency of a choice of gates."""
    return merging.predict_ms(activations_left(merging.net, gates, on))


def _count_table(net: Network, max_kernel: int) -> LatencyTable:
    """Return a table in which each conv costs one, and multiply-adds decide between equals."""
    candidates = net.candidates(max_kernel=max_kernel)
    whole = 1 + sum(segment.macs for segment in candidates)
    return LatencyTable(
        [
            LatencyEntry(start=segment.start, end=segment.end, latency_ms=1 + segment.macs / whole)
            for segment in candidates
        ],
        provenance=Provenance(
            kind="latency", network_hash=net.hash, chains=tuple((chain.start, chain.end) for chain in net.chains)
        ),
        source="candidates",
    )
