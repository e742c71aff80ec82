"""Measure merged segments, each signature once: the entries of an isolated latency table.

Two artefacts of measuring a segment alone are known. Calling a session costs some microseconds, however little it
does: a graph with the same inputs that does nothing is measured and taken off. And ONNX Runtime's
convs work in blocked memory layouts: alone, each segment pays for reordering its input and output, which inside the
network happens only now and then. The second is left to the fit to whole networks
(:mod:`layerfold.profiler.table.fit`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

from layerfold.errors import DeviceUnavailableError, ProfilerError
from layerfold.export.precision import graph_dtype
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.profiler.backends import Backend, Runner, compile_to_time
from layerfold.profiler.graphs.segment import overhead_onnx, segment_onnx
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.claims import fill
from layerfold.profiler.store.kinds import SUFFIXES, Kind
from layerfold.profiler.timing.measure import measure_runners
from layerfold.profiler.timing.measurement import Measurement, MeasurePolicy

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
        cache: where finished measurements are stored and looked up; None for one that ends with the process.
        policy: of each measurement.
        batch: of every graph.
        dtype: precision that it is run in.
        workers: processes that fill the cache together.
        kind: ``ALONE`` or ``SCREENING``; rough measurements do not stand in for careful ones.
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
        workers: int = 1,
        kind: Kind = Kind.ALONE,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._backend, self._policy = backend, policy
        self._cache = cache or MeasurementCache(False, {})
        self._batch, self.dtype, self.advance = batch, dtype, advance
        self._kind, self._suffix, self.workers = kind, SUFFIXES[kind], workers
        self.raw: dict[str, Measurement] = {}
        self.failures: dict[str, str] = {}
        self.num_measured = 0
        self._overheads: dict[int, float] = {}

    def measure(self, segments: Sequence[Segment], rough_above_ms: Sequence[float] | None = None) -> None:
        """Measure segments of distinct signatures, a chunk of sessions at a time; cached ones are only looked up.

        What the backend refuses is kept in ``failures`` with its reason, and has no latency.
        """
        limits = rough_above_ms or [float("inf")] * len(segments)
        wanted = {self._key(segment): (segment, limit) for segment, limit in zip(segments, limits, strict=True)}
        fill(
            self._cache,
            list(wanted),
            lambda keys: self._measure_chunk([wanted[key] for key in keys]),
            CHUNK,
            lambda key: self.advance(),
        )
        for segment in segments:
            if self.look_up(segment.signature) is None:
                self.failures[segment.signature] = self._cache.failure(self._key(segment)) or ""

    def _measure_chunk(self, chunk: Sequence[tuple[Segment, float]]) -> None:
        runners: list[Runner] = []
        built: list[tuple[Segment, float, float]] = []
        try:
            for segment, limit in chunk:
                began = time.perf_counter()
                onnx_bytes = segment_onnx(segment, batch=self._batch, dtype=graph_dtype(self.dtype))
                try:
                    runners.append(compile_to_time(self._backend, onnx_bytes, is_part=True))
                except DeviceUnavailableError:
                    raise  # that is no fault of the segment's
                except ProfilerError as error:
                    self._cache.put_failure(self._key(segment), str(error))
                else:
                    built.append((segment, limit, time.perf_counter() - began))

            def finished(index: int, measurement: Measurement) -> None:
                segment, _, build_s = built[index]
                self._store(segment.signature, measurement, build_s, kind=self._kind)

            measure_runners(
                [runner.run for runner in runners],
                self._policy,
                rough_above_ms=[limit for _, limit, _ in built],
                on_finished=finished,
                seed=self.num_measured,
            )
        finally:
            for runner in runners:
                runner.close()

    def outside_ms(self, net: Network, onnx_bytes: bytes, network_ends: Collection[str]) -> float:
        """Return the latency of what lies outside the chains of a network; its own inputs and outputs are float."""
        signature = f"outside network:{net.hash}"
        return self._measure_graph(
            signature, onnx_bytes, kind=Kind.OUTSIDE, network=net.hash, float_ends=network_ends
        ).median_ms

    def _measure_graph(
        self, signature: str, onnx_bytes: bytes, *, kind: Kind, network: str = "", float_ends: Collection[str] = ()
    ) -> Measurement:
        """Measure any graph under a signature of its own."""

        def measure(_: list[str]) -> None:
            began = time.perf_counter()
            runner = compile_to_time(self._backend, onnx_bytes, is_part=True, float_ends=float_ends)
            build_s = time.perf_counter() - began
            try:
                found = measure_runners([runner.run], self._policy)[0]
                self._store(signature, found, build_s, kind=kind, network=network)
            finally:
                runner.close()

        fill(self._cache, [signature + self._suffix], measure, 1)
        found = self.look_up(signature)
        assert found is not None  # it was measured, or the backend's refusal was raised
        return found

    def overhead_ms(self, segment: Segment) -> float:
        """Return what calling a session with this many inputs costs by itself."""
        count = 1 + len(segment.open_residuals)
        if count not in self._overheads:
            onnx_bytes = overhead_onnx(((16, 8, 8),) * count, batch=self._batch, dtype=graph_dtype(self.dtype))
            signature = f"overhead inputs:{count}"
            self._overheads[count] = self._measure_graph(signature, onnx_bytes, kind=self._kind).median_ms
        return self._overheads[count]

    def net_ms(self, segment: Segment) -> float:
        """Return a measured segment's latency without the call's own cost, at least 5 % of what was measured."""
        raw_ms = self.raw[segment.signature].median_ms
        return max(raw_ms - self.overhead_ms(segment), _FLOOR * raw_ms)

    def look_up(self, signature: str) -> Measurement | None:
        """Return what is known of a signature, from this run or from the cache."""
        if signature not in self.raw:
            stored = self._cache.get(signature + self._suffix)
            if stored is not None:
                self.raw[signature] = stored
        return self.raw.get(signature)

    def _key(self, segment: Segment) -> str:
        return segment.signature + self._suffix

    def _store(
        self, signature: str, measurement: Measurement, build_s: float, *, kind: Kind, network: str = ""
    ) -> None:
        self.raw[signature] = measurement
        self.num_measured += 1
        self._cache.put(signature + self._suffix, measurement, kind=kind, network=network, build_s=build_s)


def distinct(segments: Sequence[Segment]) -> list[Segment]:
    """Return the first segment of each signature, cheapest first."""
    by_signature: dict[str, Segment] = {}
    for segment in segments:
        by_signature.setdefault(segment.signature, segment)
    return sorted(by_signature.values(), key=lambda segment: segment.macs)


def count_alone(net: Network, candidates: Sequence[Segment]) -> int:
    """Return how often ``profile_segments`` advances; what equals a single layer is looked up a second time."""
    return len(distinct(_singles(net))) + len(_merged(candidates))


def _singles(net: Network) -> list[Segment]:
    return [net.segment(layer.index - 1, layer.index) for layer in net.layers]


def _merged(candidates: Sequence[Segment]) -> list[Segment]:
    """Return what merging gives, each once, less that of which nothing stays."""
    return distinct([segment for segment in candidates if segment.is_changed and not segment.is_free])


def profile_segments(net: Network, candidates: Sequence[Segment], profiler: SegmentProfiler) -> dict[str, float]:
    """Measure every distinct candidate; return, for those not worth measuring, a lower bound of their latency.

    Segments of which nothing stays and that take no time by definition are passed over.

    Single layers come first. A merged segment is then skipped when even at one and a half times the best rates seen so
    far (of multiply-adds, and of weights read) it would take three times as long as the layers it replaces: no plan
    would use it, and its weights can take hundreds of megabytes. One that plainly takes more than twice as long is
    timed in three passes only. One that the backend refuses is in ``profiler.failures`` and is no option.

    Returns:
        Signature -> lower bound in milliseconds, for the segments that were not measured.

    Raises:
        ProfilerError: the backend refuses a single layer: without it nothing can be said of the network.
    """
    singles = _singles(net)
    profiler.measure(distinct(singles))
    for segment in singles:
        if segment.signature in profiler.failures:
            raise ProfilerError(
                f"layer {segment.end} cannot be built: {profiler.failures[segment.signature]}; "
                "exclude its module, or choose another backend"
            )
    single_ms = {segment.end: profiler.net_ms(segment) for segment in singles}
    merged = _merged(candidates)
    rates = _Rates(2 if graph_dtype(profiler.dtype) == "float16" else 4)
    for segment in singles:
        rates.learn(segment, single_ms[segment.end])
    bounds: dict[str, float] = {}
    step = CHUNK * profiler.workers
    for first in range(0, len(merged), step):
        chunk, limits = [], []
        for segment in merged[first : first + step]:
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
            if segment.signature not in profiler.failures:
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
