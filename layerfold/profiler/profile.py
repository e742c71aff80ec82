"""Fill a latency table: every candidate segment of a network, on one device."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from layerfold.graph.network import Network, Segment
from layerfold.profiler.backends import Backend, get_backend
from layerfold.profiler.cache import MeasurementCache
from layerfold.profiler.measure import MeasurePolicy
from layerfold.profiler.outside import outside_graph
from layerfold.profiler.segments import SegmentProfiler, distinct, profile_segments
from layerfold.progress import progress_bar
from layerfold.tables import LatencyEntry, LatencyTable, Provenance


def profile_network(
    model: nn.Module,
    net: Network,
    backend: str | Backend = "onnxruntime",
    device: str = "cpu",
    *,
    batch: int = 1,
    dtype: str = "float32",
    threads: int = 1,
    cache: str | os.PathLike[str] | Literal[False] | None = None,
    candidates: Sequence[Segment] | None = None,
    progress: bool = True,
    target: float = 0.02,
    cap_s: float = 0.15,
    model_name: str | None = None,
) -> LatencyTable:
    """Measure every candidate segment of a network and what lies outside its chains.

    Args:
        model: the module that ``net`` was traced from; left untouched. Its weights do not matter.
        net: the traced network.
        backend: a backend's name, or one made with :func:`get_backend` (then ``device`` and ``threads`` are its own).
        device: a device of that backend.
        batch: images in one forward pass.
        dtype: ``float32`` or ``float16``.
        threads: worker threads, for backends on the CPU.
        cache: file for finished measurements; None for the default place, False for none.
        candidates: what to measure; None for ``net.candidates()``.
        progress: show a bar on stderr.
        target: half-width of each entry's 95 % interval, relative, at which it has settled.
        cap_s: most seconds of timed running an entry.
        model_name: what the user calls the model, for the table's provenance.

    Returns:
        The table; ``provenance.fixed_ms`` is the measured latency outside the chains, the session's call included.
        An entry with ``runs=0`` was not measured: its latency is a lower bound, several times what it replaces.

    Raises:
        UsageError: unknown backend, device or dtype, unwritable cache.
        ExportError: an activation that has no ONNX form.
        ProfilerError: the backend refuses a graph.
    """
    chosen = get_backend(backend, device=device, threads=threads) if isinstance(backend, str) else backend
    segments = list(net.candidates() if candidates is None else candidates)
    policy = MeasurePolicy(target=target, cap_s=cap_s, block_ms=0.3, warmup_cap_s=max(cap_s, 0.1))
    facts = chosen.provenance()
    environment = {**facts, "batch": batch, "dtype": dtype}
    store = None if cache is False else MeasurementCache(cache, environment)
    try:
        wanted = distinct([*segments, *(net.segment(m, m + 1) for m in range(len(net.layers)))])
        with progress_bar("profile: measure segments", len(wanted), enabled=progress) as bar:
            profiler = SegmentProfiler(chosen, store, policy, batch=batch, dtype=dtype, advance=bar.advance)
            bounds = profile_segments(net, segments, profiler)
        fixed_ms = _outside_ms(model, net, profiler, batch, dtype)
    finally:
        if store is not None:
            store.close()
    options = {**facts["options"], "method": "isolated", "target": target, "cap_s": cap_s}
    provenance = Provenance(
        kind="latency",
        model=model_name or net.name,
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
        options=options,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    return LatencyTable([_entry(net, segment, profiler, bounds) for segment in segments], provenance=provenance)


def _outside_ms(model: nn.Module, net: Network, profiler: SegmentProfiler, batch: int, dtype: str) -> float:
    """Return the latency of what lies outside the chains, with the one call of a session that every plan needs."""
    signature = f"outside network:{net.hash}"
    known = profiler.look_up(signature)
    if known is None:
        onnx_bytes = outside_graph(model, net, batch=batch, dtype=dtype).onnx_bytes
        if onnx_bytes is None:
            return profiler.overhead_ms(net.segment(0, 1))
        known = profiler.measure_graph(signature, onnx_bytes)
    return known.median_ms


def _entry(net: Network, segment: Segment, profiler: SegmentProfiler, bounds: dict[str, float]) -> LatencyEntry:
    has_activation_before = any(chain.start == segment.start for chain in net.chains) or net.has_activation(segment.start)
    facts: dict[str, Any] = {
        "start": segment.start,
        "end": segment.end,
        "start_act": int(has_activation_before),
        "end_act": int(segment.activation is not None),
        "signature": segment.signature,
        "macs": segment.macs,
        "params": segment.conv.num_params,
    }
    if segment.signature in bounds:
        return LatencyEntry(latency_ms=bounds[segment.signature], spread_ms=0.0, runs=0, **facts)
    raw = profiler.raw[segment.signature]
    return LatencyEntry(latency_ms=profiler.net_ms(segment), spread_ms=raw.spread_ms, runs=raw.runs, **facts)
