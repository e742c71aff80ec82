"""Measure segments inside their network: the change that merging one segment makes to the whole.

A segment alone finds its weights in the caches and pays for memory layouts at its borders; inside the network it is
the other way round. So for each candidate the whole network with only that segment merged is assembled
(:mod:`layerfold.profiler.assemble`) and timed round by round against the unmerged one. The entry of a merged segment is
the entries of its layers plus that change. Sums of entries then predict whole networks as far as changes add up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layerfold.graph.network import Chain, Network, Segment
from layerfold.profiler.assemble import assemble_chain, assemble_network
from layerfold.profiler.backends import Backend, Runner
from layerfold.profiler.cache import MeasurementCache
from layerfold.profiler.claims import fill
from layerfold.profiler.measure import (
    Measurement,
    MeasurePolicy,
    TimedRunner,
    measure_runners,
    median_interval,
    summarise_blocks,
)
from layerfold.profiler.outside import OutsideGraph
from layerfold.tables._kernel import SegmentKey

_CHUNK = 5
_BASE = -1
_LARGE_OUTSIDE_BYTES = 1 << 26
_MIN_ROUNDS, _LEAST_ROUNDS = 8, 4


@dataclass(frozen=True, kw_only=True)
class Change:
    """What merging one segment does to the whole network.

    Attributes:
        change_ms: latency with the segment merged less that without.
        low_ms, high_ms: its 95 % interval, from ratios paired round by round.
        rounds, runs: rounds, and timed passes of the merged network.
    """

    change_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    runs: int


class ChangeProfiler:
    """Times networks that differ from the unmerged one in one segment.

    Args:
        net, outside: the network and what lies outside its chains.
        backend: compiles and runs.
        cache: where finished changes are stored and looked up, or None.
        policy: ``target`` is the half-width of a change's interval, relative to the whole network.
        dtype: of every graph.
    """

    def __init__(
        self,
        net: Network,
        outside: OutsideGraph,
        backend: Backend,
        cache: MeasurementCache | None,
        policy: MeasurePolicy,
        *,
        dtype: str,
    ) -> None:
        self._net, self._outside, self._backend = net, outside, backend
        self._cache = cache or MeasurementCache(False, {})
        self._policy, self._dtype = policy, dtype
        self._all = range(1, len(net.layers) + 1)
        # Fully connected layers of hundreds of megabytes (VGG) in six sessions at a time would fill the memory, and
        # their time would drown each change: there a chain alone is the context.
        self._contexts: dict[Chain | None, Measurement] = {}
        self._is_by_chain = len(outside.onnx_bytes or b"") > _LARGE_OUTSIDE_BYTES

    def base_ms(self) -> Measurement:
        """Return the latency of the unmerged network."""
        return self._context(None)

    def _context(self, chain: Chain | None) -> Measurement:
        """Return the latency of the unmerged network, or of one chain of it."""
        if chain not in self._contexts:
            self._contexts[chain] = self._measure_context(chain)
        return self._contexts[chain]

    def _measure_context(self, chain: Chain | None) -> Measurement:
        signature = f"{_context_text(chain)} network:{self._net.hash}"

        def measure(_: list[str]) -> None:
            base = self._compile(chain, None)
            try:
                self._cache.put(signature, measure_runners([base.run], self._policy)[0])
            finally:
                base.close()

        fill(self._cache, [signature], measure, 1)
        known = self._cache.get(signature)
        assert known is not None
        return known

    def changes(
        self, segments: Sequence[Segment], advance: Callable[[], None] = lambda: None
    ) -> dict[SegmentKey, Change]:
        """Measure the change of each segment; equal segments in place of equal layers are measured once."""
        found: dict[SegmentKey, Change] = {}
        alike: dict[Chain | None, dict[str, list[Segment]]] = {}
        for segment in segments:
            chain = self._net.chain_of(segment.end) if self._is_by_chain else None
            alike.setdefault(chain, {}).setdefault(self._signature(chain, segment), []).append(segment)
        for chain, groups in alike.items():
            self._fill(chain, groups, advance)
            for signature, group in groups.items():
                measurement = self._cache.get(signature)
                assert measurement is not None
                for segment in group:
                    found[segment.key] = _change_of(measurement, self._context(chain).median_ms)
        return found

    def _fill(self, chain: Chain | None, groups: dict[str, list[Segment]], advance: Callable[[], None]) -> None:
        """Have the first segment of each group measured, by this process or by others that fill the same cache."""
        base: list[Runner] = []

        def measure(signatures: list[str]) -> None:
            if not base:
                base.append(self._compile(chain, None))
            measured = self._measure_chunk(chain, base[0], [groups[each][0] for each in signatures])
            for signature, measurement in zip(signatures, measured, strict=True):
                self._cache.put(signature, measurement)

        def finish(signature: str) -> None:
            for _ in groups[signature]:
                advance()

        try:
            fill(self._cache, list(groups), measure, _CHUNK, finish)
        finally:
            for runner in base:
                runner.close()

    def _measure_chunk(self, chain: Chain | None, base: Runner, segments: list[Segment]) -> list[Measurement]:
        """Time each segment's network next to the base; values are ratios, kept in the fields of a Measurement."""
        policy = self._policy
        runners: list[Runner] = []
        try:
            for segment in segments:
                runners.append(self._compile(chain, segment))
            reference = TimedRunner(base.run, policy)
            timed = [TimedRunner(runner.run, policy) for runner in runners]
            for each in (reference, *timed):
                each.warm_up()
            ratios: list[list[float]] = [[] for _ in timed]
            deadline = time.perf_counter() + policy.cap_s * len(timed)
            active = list(range(len(timed)))
            settled: set[int] = set()
            rounds, last = 0, _BASE
            turns = {_BASE: reference, **dict(enumerate(timed))}
            shuffle = random.Random(len(segments)).shuffle
            while active:
                # The base takes its turn like any other, never twice running: found in warmer caches than the rest,
                # it would make every change look larger than it is, and a plan's sum adds that up.
                order = [_BASE, *active]
                shuffle(order)
                if order[0] == last:
                    order.append(order.pop(0))
                last = order[-1]
                is_disturbed = False
                for index in order:
                    is_disturbed |= turns[index].block_ms() is None
                values_ms = {index: timed[index].last_ms for index in active}
                base_ms = reference.last_ms
                is_late = time.perf_counter() > deadline
                if is_late:
                    for each in (reference, *timed):
                        each.retry_s = 0.0
                elif is_disturbed:
                    continue
                rounds += 1
                for index, value_ms in values_ms.items():
                    ratios[index].append(value_ms / base_ms)
                if rounds >= (_LEAST_ROUNDS if is_late else _MIN_ROUNDS):
                    for index in active:
                        low, high = median_interval(ratios[index])
                        if rounds >= _MIN_ROUNDS and (high - low) / 2 < policy.target:
                            settled.add(index)
                    active = [index for index in active if index not in settled]
                    if is_late:
                        break
            return [
                summarise_blocks(
                    ratios[index],
                    runs=len(ratios[index]) * timed[index].runs_per_block,
                    is_settled=index in settled,
                    disturbed=timed[index].disturbed,
                )
                for index in range(len(timed))
            ]
        finally:
            for runner in runners:
                runner.close()

    def _compile(self, chain: Chain | None, segment: Segment | None) -> Runner:
        """Compile the network, or one chain of it, with one segment merged, or none."""
        stops = [m for m in self._all if segment is None or not segment.start < m < segment.end]
        acts = [m for m in stops if self._net.has_activation(m)]
        dropped = () if segment is None else segment.dropped
        if chain is None:
            graph = assemble_network(self._net, self._outside, acts, stops, dropped, dtype=self._dtype)
        else:
            batch = self._outside.input_shapes[0][0]
            graph = assemble_chain(self._net, chain, acts, stops, dropped, batch=batch, dtype=self._dtype)
        return self._backend.compile(graph)

    def _signature(self, chain: Chain | None, segment: Segment) -> str:
        replaced = " | ".join(self._net.segment(m, m + 1).signature for m in range(segment.start, segment.end))
        return f"change in {_context_text(chain)} network:{self._net.hash} from: {replaced} to: {segment.signature}"


def _context_text(chain: Chain | None) -> str:
    return "whole" if chain is None else f"chain {chain.start}..{chain.end} of"


def _change_of(ratios: Measurement, context_ms: float) -> Change:
    return Change(
        change_ms=(ratios.median_ms - 1) * context_ms,
        low_ms=(ratios.low_ms - 1) * context_ms,
        high_ms=(ratios.high_ms - 1) * context_ms,
        rounds=ratios.blocks,
        runs=ratios.runs,
    )
