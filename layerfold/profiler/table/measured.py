"""The measuring of a latency table, in this process and on a backend that is open."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from layerfold.export.precision import graph_dtype
from layerfold.files import JsonObject
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.options import ProfileOptions
from layerfold.profiler.backends import Backend
from layerfold.profiler.graphs.outside import OutsideGraph, outside_graph
from layerfold.profiler.plans.timer import PLAN_POLICY, PlanTimer
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.environment import quantisation_of
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.table.fit import fit_to_plans
from layerfold.profiler.table.neighbours import NeighbourTimer
from layerfold.profiler.table.segments import SegmentProfiler, count_alone, profile_segments
from layerfold.profiler.timing.measurement import MeasurePolicy
from layerfold.progress import progress_bar
from layerfold.tables import LatencyEntry, LatencyTable, Provenance

KIND_ALONE: dict[str, Kind] = {"plans": Kind.SCREENING, "isolated": Kind.ALONE}
"""Method of profiling -> how segments are measured alone."""
DEFAULT_TARGET: dict[str, float] = {"plans": 0.006, "isolated": 0.02}
SCREENING = MeasurePolicy(target=0.05, cap_s=0.05, block_ms=0.3, warmup_cap_s=0.05)


def measured_table(
    model: nn.Module,
    net: Network,
    backend: Backend,
    store: MeasurementCache,
    options: ProfileOptions,
    *,
    progress: bool = False,
) -> LatencyTable:
    """Measure what the cache does not hold yet, and make the table of it.

    Args:
        model, net: as of ``profile_network``.
        backend: measures.
        store: the cache of this backend, batch and dtype.
        options: what is measured; its ``workers`` are processes that fill the cache together, this one included.
        progress: show a bar on stderr.
    """
    batch, dtype, method = options.batch, options.dtype, options.method
    segments = list(net.candidates() if options.candidates is None else options.candidates)
    policy = policy_of(options)
    facts, how = backend.provenance(), quantisation_of(backend, dtype)
    with progress_bar("profile: segments alone", count_alone(net, segments), enabled=progress) as bar:
        alone = segment_profiler(backend, store, options, advance=bar.advance)
        bounds = profile_segments(net, segments, alone)
    built = [segment for segment in segments if segment.signature not in alone.failures]
    outside = outside_graph(model, net, batch=batch, dtype=graph_dtype(dtype))
    fixed_ms = _outside_ms(net, outside, alone)
    entries = [_isolated_entry(net, segment, alone, bounds) for segment in built]
    fit: JsonObject = {}
    if method == "plans":
        timer = PlanTimer(net, outside, backend, store, replace(PLAN_POLICY, target=policy.target), dtype=dtype)
        neighbours = NeighbourTimer(net, backend, store, batch=batch, dtype=dtype)
        entries, fixed_ms, fit = fit_to_plans(
            net, built, entries, fixed_ms, timer, neighbours, options.num_plans, progress=progress
        )
    provenance = Provenance(
        kind="latency",
        model=options.model_name or net.name,
        network_hash=net.hash,
        input_shape=(batch, *net.input_shapes[0][1:]),
        batch=batch,
        dtype=dtype,
        device=facts["device"],
        driver=facts["driver"],
        backend=facts["backend"],
        versions=facts["versions"],
        fixed_ms=fixed_ms,
        chains=tuple((chain.start, chain.end) for chain in net.chains),
        measurement=_measurement_facts(store, segments, alone.failures),
        options={"method": method, "target": policy.target, "cap_s": options.cap_s, **fit},
        backend_options={**facts["options"], **({} if how is None else {"quantisation": how})},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return LatencyTable(entries, provenance=provenance)


def _measurement_facts(store: MeasurementCache, segments: Sequence[Segment], failures: Mapping[str, str]) -> JsonObject:
    """Return what a table's provenance says of its measurements."""
    seen = store.conditions()
    return {
        **store.report.counts(),
        "conditions": {"warnings": []} if seen is None else seen.to_json(),
        "not_built": [
            {"st": segment.start, "end": segment.end, "reason": failures[segment.signature]}
            for segment in segments
            if segment.signature in failures
        ],
    }


def policy_of(options: ProfileOptions) -> MeasurePolicy:
    """Return when a measurement that counts has settled."""
    target = options.target or DEFAULT_TARGET[options.method]
    return MeasurePolicy(target=target, cap_s=options.cap_s, block_ms=0.3, warmup_cap_s=0.1)


def segment_profiler(
    backend: Backend,
    store: MeasurementCache | None,
    options: ProfileOptions,
    *,
    advance: Callable[[], None] = lambda: None,
) -> SegmentProfiler:
    """Return what measures segments alone: for screening where they are measured in the network afterwards."""
    return SegmentProfiler(
        backend,
        store,
        SCREENING if options.method != "isolated" else policy_of(options),
        batch=options.batch,
        dtype=options.dtype,
        workers=options.workers,
        kind=KIND_ALONE[options.method],
        advance=advance,
    )


def _outside_ms(net: Network, outside: OutsideGraph, profiler: SegmentProfiler) -> float:
    """Return the latency of what lies outside the chains, with the one call of a session that every plan needs."""
    if outside.onnx_bytes is None:
        return profiler.overhead_ms(net.segment(0, 1))
    return profiler.outside_ms(net, outside.onnx_bytes, {*outside.network_inputs, *outside.outputs})


def _isolated_entry(
    net: Network, segment: Segment, profiler: SegmentProfiler, bounds: dict[str, float]
) -> LatencyEntry:
    is_chain_start = any(chain.start == segment.start for chain in net.chains)
    latency_ms, spread_ms, runs = bounds.get(segment.signature, 0.0), 0.0, 0
    if not segment.is_free and segment.signature not in bounds:
        raw = profiler.raw[segment.signature]
        latency_ms, spread_ms, runs = profiler.net_ms(segment), raw.spread_ms, raw.runs
    return LatencyEntry(
        start=segment.start,
        end=segment.end,
        latency_ms=0.0 if segment.is_free else latency_ms,
        spread_ms=spread_ms,
        start_act=int(is_chain_start or net.has_activation(segment.start)),
        end_act=int(segment.activation is not None),
        signature=segment.signature,
        runs=runs,
        macs=segment.macs,
        params=segment.conv.num_params,
        merged=segment.merged if segment.change is not None else "",
        change=segment.change,
    )
