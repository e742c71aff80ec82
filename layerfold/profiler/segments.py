"""Measure merged segments, each signature once: the entries of an isolated latency table.

Two artefacts of measuring a segment alone are known. Calling a session costs some microseconds, however little it
does: a graph with the same inputs that does nothing is measured and taken off. And ONNX Runtime's
convs work in blocked memory layouts: alone, each segment pays for reordering its input and output, which inside the
network happens only now and then. The second is left to the calibration (:mod:`layerfold.profiler.calibrate`), and
``method="in_network"`` avoids both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from layerfold.graph.network import Network, Segment
from layerfold.profiler.backends import Backend, Runner
from layerfold.profiler.cache import MeasurementCache
from layerfold.profiler.measure import Measurement, MeasurePolicy, measure_runners
from layerfold.profiler.segment_onnx import overhead_onnx, segment_onnx

CHUNK = 8
"""Sessions alive at a time: enough to interleave, few enough not to disturb each other."""
_ROUGH_FACTOR = 2.0
_BOUND_FACTOR = 3.0
_PEAK_MARGIN = 1.5
_LARGEST_ONNX_BYTES = 1 << 30
_LARGE_WEIGHTS = 1 << 22
_FLOOR = 0.05


class SegmentProfiler:
    """Measures segments on one backend; results are kept by signature.

    Args:
        backend: compiles and runs.
        cache: where finished measurements are stored and looked up, or None.
        policy: of each measurement.
        batch, dtype: of every graph.
        purpose: put behind each signature in the cache, so that rough measurements do not stand in for careful ones.
        advance: called once for each signature that is finished.
    """

    def __init__(
        self,
        backend: Backend,
        cache: MeasurementCache | None,
        policy: MeasurePolicy,
        *,
        batch: int,
        dtype: str,
        purpose: str = "",
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._backend, self._cache, self._policy = backend, cache, policy
        self._batch, self.dtype, self.advance = batch, dtype, advance
        self._purpose = purpose
        self.raw: dict[str, Measurement] = {}
        self.num_measured = 0
        self._overheads: dict[int, float] = {}

    def measure(self, segments: Sequence[Segment], rough_above_ms: Sequence[float] | None = None) -> None:
        """Measure segments of distinct signatures, a chunk of sessions at a time; cached ones are only looked up."""
        limits = rough_above_ms or [float("inf")] * len(segments)
        todo = []
        for segment, limit in zip(segments, limits, strict=True):
            if self.look_up(segment.signature) is None:
                todo.append((segment, limit))
            else:
                self.advance()
        for first in range(0, len(todo), CHUNK):
            chunk = todo[first : first + CHUNK]
            self._measure_chunk([segment for segment, _ in chunk], [limit for _, limit in chunk])

    def _measure_chunk(self, segments: list[Segment], limits: list[float]) -> None:
        runners: list[Runner] = []
        try:
            for segment in segments:
                runners.append(
                    self._backend.compile(segment_onnx(segment, batch=self._batch, dtype=self.dtype))
                )

            def finished(index: int, measurement: Measurement) -> None:
                self._store(segments[index].signature, measurement)
                self.advance()

            measure_runners([runner.run for runner in runners], self._policy, rough_above_ms=limits,
                            on_finished=finished, seed=self.num_measured)
        finally:
            for runner in runners:
                runner.close()

    def measure_graph(self, signature: str, onnx_bytes: bytes) -> Measurement:
        """Measure any graph under a signature of its own."""
        known = self.look_up(signature)
        if known is None:
            runner = self._backend.compile(onnx_bytes)
            try:
                known = measure_runners([runner.run], self._policy)[0]
            finally:
                runner.close()
            self._store(signature, known)
        return known

    def overhead_ms(self, segment: Segment) -> float:
        """Return what calling a session with this many inputs costs by itself."""
        count = 1 + len(segment.open_residuals)
        if count not in self._overheads:
            onnx_bytes = overhead_onnx(((16, 8, 8),) * count, batch=self._batch, dtype=self.dtype)
            self._overheads[count] = self.measure_graph(f"overhead inputs:{count}", onnx_bytes).median_ms
        return self._overheads[count]

    def net_ms(self, segment: Segment) -> float:
        """Return a measured segment's latency without the call's own cost, at least 5 % of what was measured."""
        raw_ms = self.raw[segment.signature].median_ms
        return max(raw_ms - self.overhead_ms(segment), _FLOOR * raw_ms)

    def look_up(self, signature: str) -> Measurement | None:
        """Return what is known of a signature, from this run or from the cache."""
        if signature not in self.raw and self._cache is not None:
            stored = self._cache.get(signature + self._purpose)
            if stored is not None:
                self.raw[signature] = stored
        return self.raw.get(signature)

    def _store(self, signature: str, measurement: Measurement) -> None:
        self.raw[signature] = measurement
        self.num_measured += 1
        if self._cache is not None:
            self._cache.put(signature + self._purpose, measurement)


def distinct(segments: Sequence[Segment]) -> list[Segment]:
    """Return the first segment of each signature, cheapest first."""
    by_signature: dict[str, Segment] = {}
    for segment in segments:
        by_signature.setdefault(segment.signature, segment)
    return sorted(by_signature.values(), key=lambda segment: segment.macs)


def profile_segments(net: Network, candidates: Sequence[Segment], profiler: SegmentProfiler) -> dict[str, float]:
    """Measure every distinct candidate; return, for those not worth measuring, a lower bound of their latency.

    Single layers come first. A merged segment is then skipped when even at one and a half times the best rates seen so
    far (of multiply-adds, and of weights read) it would take three times as long as the layers it replaces: no plan
    would use it, and its weights can take hundreds of megabytes. One that plainly takes more than twice as long is
    timed in three passes only.

    Returns:
        Signature -> lower bound in milliseconds, for the segments that were not measured.
    """
    singles = [net.segment(layer.index - 1, layer.index) for layer in net.layers]
    profiler.measure(distinct(singles))
    single_ms = {segment.end: profiler.net_ms(segment) for segment in singles}
    merged = distinct([segment for segment in candidates if segment.num_layers > 1])
    rates = _Rates(4 if profiler.dtype == "float32" else 2)
    for segment in singles:
        rates.learn(segment, single_ms[segment.end])
    bounds: dict[str, float] = {}
    for first in range(0, len(merged), CHUNK):
        chunk, limits = [], []
        for segment in merged[first : first + CHUNK]:
            replaced_ms = sum(single_ms[end] for end in range(segment.start + 1, segment.end + 1))
            bound_ms = rates.bound_ms(segment)
            if bound_ms > _BOUND_FACTOR * replaced_ms or rates.weight_bytes(segment) > _LARGEST_ONNX_BYTES:
                bounds[segment.signature] = bound_ms
                profiler.advance()
            else:
                chunk.append(segment)
                limits.append(_ROUGH_FACTOR * replaced_ms + profiler.overhead_ms(segment))
        profiler.measure(chunk, limits)
        for segment in chunk:
            rates.learn(segment, profiler.net_ms(segment))
    return bounds


class _Rates:
    """The best rates seen on a device: what no segment is likely to beat by much."""

    def __init__(self, bytes_each: int) -> None:
        self._bytes_each = bytes_each
        self._macs_per_ms = 0.0
        self._weight_bytes_per_ms = 0.0

    def weight_bytes(self, segment: Segment) -> int:
        return segment.conv.num_params * self._bytes_each

    def learn(self, segment: Segment, latency_ms: float) -> None:
        self._macs_per_ms = max(self._macs_per_ms, segment.macs / latency_ms)
        if self.weight_bytes(segment) >= _LARGE_WEIGHTS:  # smaller ones say more about the caches than about the memory
            self._weight_bytes_per_ms = max(self._weight_bytes_per_ms, self.weight_bytes(segment) / latency_ms)

    def bound_ms(self, segment: Segment) -> float:
        """Return what a segment takes at ``_PEAK_MARGIN`` times the best rates."""
        bound_ms = segment.macs / self._macs_per_ms
        if self._weight_bytes_per_ms and self.weight_bytes(segment) >= _LARGE_WEIGHTS:
            bound_ms = max(bound_ms, self.weight_bytes(segment) / self._weight_bytes_per_ms)
        return bound_ms / _PEAK_MARGIN
