"""Time segments between their neighbours: the change that merging one makes with a layer on either side of it.

With a layer before it and one behind it, a segment works in the memory layout that it has in the network, and the two
layers' own latency cancels in the difference. A graph of a few layers runs many times while a whole network runs
once, so differences are known more precisely, and equal surroundings are timed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerfold.export.precision import graph_dtype
from layerfold.graph.activations import activation_at
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.profiler.backends import Backend, Runner, compile_to_time
from layerfold.profiler.graphs.segment import write_segment
from layerfold.profiler.graphs.writer import OnnxWriter
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.claims import fill
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.measurement import MeasurePolicy, summarise_blocks
from layerfold.profiler.timing.turns import time_in_turns
from layerfold.tables.kernel import SegmentKey

RATIO = " ratio"
"""What stands behind the signature of a segment's surroundings where merged / not merged is stored."""
APART = " apart"
"""What stands behind it where the latency of the layers as they are is stored."""
NEIGHBOUR_POLICY = MeasurePolicy(target=0.02, cap_s=0.25, block_ms=0.5, warmup_cap_s=0.1)


class NeighbourTimer:
    """Times segments between their neighbours on one backend.

    Args:
        net: the network.
        backend: compiles and runs.
        cache: where finished measurements are stored and looked up, or None.
        batch: of every graph.
        dtype: precision that it is run in.
    """

    def __init__(
        self,
        net: Network,
        backend: Backend,
        cache: MeasurementCache | None = None,
        *,
        batch: int = 1,
        dtype: str = "float32",
    ) -> None:
        self._net, self._backend = net, backend
        self._cache = cache or MeasurementCache(False, {})
        self._batch, self._dtype = batch, dtype

    def changes_ms(
        self, segments: Sequence[Segment], advance: Callable[[], None] = lambda: None
    ) -> dict[SegmentKey, float]:
        """Return, for each changed segment, its latency less that of its layers, in ms."""
        alike: dict[str, list[Segment]] = {}
        for segment in segments:
            alike.setdefault(neighbours_signature(self._net, segment) + APART, []).append(segment)

        def finish(key: str) -> None:
            for _ in alike[key]:
                advance()

        def measure(keys: list[str]) -> None:
            for key in keys:
                self._measure(key, *_surrounded(self._net, alike[key][0]))

        fill(self._cache, list(alike), measure, 1, finish)
        found: dict[SegmentKey, float] = {}
        for key, group in alike.items():
            measured, apart = self._cache.get_ratio(key.removesuffix(APART) + RATIO), self._cache.get(key)
            assert measured is not None
            assert apart is not None
            for segment in group:
                found[segment.key] = apart.median_ms * (measured.ratio.estimate - 1)
        return found

    def _measure(self, key: str, apart: Sequence[Segment], merged: Sequence[Segment]) -> None:
        runners: list[Runner] = []
        try:
            for graph in (apart, merged):
                runners.append(compile_to_time(self._backend, self._graph(graph), is_part=True))
            turns = time_in_turns([runner.run for runner in runners], NEIGHBOUR_POLICY, are_latencies_wanted=True)
        finally:
            for runner in runners:
                runner.close()
        found = turns.measured_ratio(1, is_settled=turns.is_settled)
        self._cache.put(key.removesuffix(APART) + RATIO, found, kind=Kind.NEIGHBOURS_RATIO)
        # Last: where it is known, all is.
        self._cache.put(
            key,
            summarise_blocks(
                turns.values_ms[0], runs=turns.runs[0], is_settled=turns.is_settled, disturbed=turns.contended
            ),
            kind=Kind.NEIGHBOURS,
        )

    def _graph(self, segments: Sequence[Segment]) -> bytes:
        """Return the graph of consecutive segments; what residuals bring from before them is an input."""
        writer = OnnxWriter(dtype=graph_dtype(self._dtype), batch=self._batch, is_light=True)
        chain = self._net.chain_of(segments[-1].end)
        features = {segments[0].start: writer.add_input("x", segments[0].input_shape)}
        for segment in segments:
            for residual in segment.open_residuals:
                if residual.src not in features:
                    features[residual.src] = writer.add_input(f"source_{residual.src}", residual.source_shape)
            activation = activation_at(self._net, chain, segment.end, self._net.original_act_pos)
            features[segment.end] = write_segment(writer, features[segment.start], segment, features, activation)
        output = features[segments[-1].end]
        if output == features[segments[0].start]:  # nothing is left: a graph needs a node
            output = writer.node("Identity", [output])
        writer.add_output(output, segments[-1].output_shape)
        return writer.model_bytes()


def neighbours_signature(net: Network, segment: Segment) -> str:
    """Return what is equal for segments that make the same change between the same neighbours."""
    apart, merged = _surrounded(net, segment)
    return "beside neighbours: " + " | ".join(each.signature for each in (*apart, *merged))


def _surrounded(net: Network, segment: Segment) -> tuple[list[Segment], list[Segment]]:
    """Return the layers from the one before to the one behind, and the same with the segment merged."""
    chain = net.chain_of(segment.end)
    first, last = max(segment.start - 1, chain.start), min(segment.end + 1, chain.end)
    layers = [net.segment(m - 1, m) for m in range(first + 1, last + 1)]
    before, behind = segment.start - first, last - segment.end
    return layers, [*layers[:before], segment, *layers[len(layers) - behind :]]
