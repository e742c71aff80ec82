"""Fill a latency table: every candidate segment of a network, on one device."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from layerfold.errors import UsageError
from layerfold.executor import Executor
from layerfold.graph.network import Network, Segment
from layerfold.modules import public_call
from layerfold.profiler.backends import Backend
from layerfold.profiler.cache import MeasurementCache
from layerfold.profiler.fit_plans import fit_to_plans
from layerfold.profiler.in_network import ChangeProfiler
from layerfold.profiler.measure import MeasurePolicy
from layerfold.profiler.neighbours import NeighbourTimer
from layerfold.profiler.open_cache import measurement_facts, open_cache, purpose_of
from layerfold.profiler.outside import OutsideGraph, outside_graph
from layerfold.profiler.plan_timing import PLAN_POLICY, PlanTimer
from layerfold.profiler.segments import SegmentProfiler, count_alone, profile_segments
from layerfold.profiler.together import BackendChoice, MakeFiller, filled_together, shared_path
from layerfold.progress import progress_bar
from layerfold.tables import LatencyEntry, LatencyTable, Provenance

Method = Literal["plans", "in_network", "isolated"]
_DEFAULT_TARGET: dict[str, float] = {"plans": 0.006, "in_network": 0.006, "isolated": 0.02}
SCREENING = MeasurePolicy(target=0.05, cap_s=0.05, block_ms=0.3, warmup_cap_s=0.05)
_WORTH_TIMING = 2.0
_FLOOR = 0.05


@public_call
def profile_network(
    model: nn.Module,
    net: Network,
    backend: str | Backend | BackendChoice = "onnxruntime",
    device: str | None = None,
    *,
    batch: int = 1,
    dtype: str = "float32",
    threads: int = 1,
    cache: MeasurementCache | str | os.PathLike[str] | Literal[False] | None = None,
    candidates: Sequence[Segment] | None = None,
    method: Method = "plans",
    num_plans: int | None = None,
    progress: bool = True,
    target: float | None = None,
    cap_s: float = 0.25,
    model_name: str | None = None,
    workers: int = 1,
    executor: str | Executor = "local",
) -> LatencyTable:
    """Measure every candidate segment of a network and what lies outside its chains.

    Args:
        model: the module that ``net`` was traced from; left untouched. Its weights do not matter.
        net: the traced network.
        backend: a backend's name, or one made with :func:`layerfold.profiler.get_backend` (then ``device`` and
            ``threads`` are its own).
        device: a device of that backend; None for its first.
        batch: images in one forward pass.
        dtype: ``float32`` or ``float16``.
        threads: worker threads, for backends on the CPU.
        cache: file for finished measurements, or one opened with ``layerfold.profiler.cache.open_cache``; None for
            the default place, False for none.
        candidates: what to measure; None for ``net.candidates()``.
        method: ``plans`` screens the segments alone, times promising ones between their neighbours, then some tens of
            whole networks, each merged by a random plan, and fits the entries to them
            (``layerfold.profiler.beliefs``): sums of entries then predict networks, and each entry says how sure
            it is. ``in_network`` times each promising segment in a whole
            network of its own instead: slower and less true. ``isolated`` takes the segments alone: shared between
            networks, and off by a tenth or more.
        num_plans: whole networks to time for ``plans``; None for one a promising shape, 16 at least and 40 at most.
        progress: show a bar on stderr.
        target: half-width of each 95 % interval at which it has settled, relative to the whole network
            (``plans`` and ``in_network``, default 0.006) or to the entry (``isolated``, default 0.02).
        cap_s: most seconds of timed running an entry.
        model_name: what the user calls the model, for the table's provenance.
        workers: processes that fill the cache together, if this is one of several.
        executor: who measures: ``local``, ``ray``, or an :class:`Executor` that says more. Several workers open a
            backend each, so that it must be named, and share what they measure through the cache.

    Returns:
        The table. ``provenance.fixed_ms`` is the measured latency outside the chains, the session's call included;
        but for ``isolated``, the original's entries and ``fixed_ms`` add up to its measured latency. An entry with
        ``runs=0`` was not measured: its latency is a lower bound, several times what it replaces, unless nothing stays
        of its segment. A segment that the backend refuses to build has no entry, so that it is no option for the
        solver; ``provenance.measurement``
        says which and why, and how many measurements did not settle.

    Raises:
        UsageError: unknown backend, device, dtype or method, unwritable cache.
        ExportError: an activation that has no ONNX form.
        ProfilerError: the backend refuses a graph.
        ExecutorError: no worker could do its work; ClusterUnavailableError: there is no such cluster.
    """
    if method not in _DEFAULT_TARGET:
        raise UsageError(f"method={method!r} is not known; choose from {', '.join(_DEFAULT_TARGET)}")
    choice = BackendChoice.of(backend, device, threads) if isinstance(backend, str) else backend
    where = Executor.of(executor)
    if not where.is_here:
        make_filler = MakeFiller.of(
            model,
            net,
            choice,
            where,
            batch=batch,
            dtype=dtype,
            candidates=candidates,
            method=method,
            num_plans=num_plans,
            target=target,
            cap_s=cap_s,
        )
        with filled_together(where, make_filler, shared_path(cache)) as filling:
            return profile_network(
                model,
                net,
                filling.backend,
                batch=batch,
                dtype=dtype,
                cache=filling.store,
                candidates=candidates,
                method=method,
                num_plans=num_plans,
                progress=progress,
                target=target,
                cap_s=cap_s,
                model_name=model_name,
                workers=filling.workers,
            )
    chosen = choice.open() if isinstance(choice, BackendChoice) else choice
    segments = list(net.candidates() if candidates is None else candidates)
    policy = policy_of(method, target, cap_s)
    facts = chosen.provenance()
    store = cache if isinstance(cache, MeasurementCache) else open_cache(cache, chosen, batch=batch, dtype=dtype)
    try:
        with progress_bar("profile: segments alone", count_alone(net, segments), enabled=progress) as bar:
            alone = segment_profiler(
                method,
                chosen,
                store,
                target=target,
                cap_s=cap_s,
                batch=batch,
                dtype=dtype,
                workers=workers,
                advance=bar.advance,
            )
            bounds = profile_segments(net, segments, alone)
        built = [segment for segment in segments if segment.signature not in alone.failures]
        outside = outside_graph(model, net, batch=batch, dtype=dtype)
        fixed_ms = _outside_ms(net, outside, alone)
        entries = [_isolated_entry(net, segment, alone, bounds) for segment in built]
        if method == "in_network":
            changes = ChangeProfiler(net, outside, chosen, store, policy, dtype=dtype)
            entries = _entries_in_network(net, built, entries, alone, changes, fixed_ms, progress)
        fit: dict[str, Any] = {}
        if method == "plans":
            timer = PlanTimer(net, outside, chosen, store, replace(PLAN_POLICY, target=policy.target), dtype=dtype)
            neighbours = NeighbourTimer(net, chosen, store, batch=batch, dtype=dtype)
            entries, fixed_ms, fit = fit_to_plans(
                net, built, entries, fixed_ms, timer, neighbours, num_plans, progress=progress
            )
        measurement = measurement_facts(store, segments, alone.failures)
    finally:
        if store is not cache:
            store.close()
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
        measurement=measurement,
        options={"method": method, "target": policy.target, "cap_s": cap_s, **fit},
        backend_options=facts["options"],
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return LatencyTable(entries, provenance=provenance)


def policy_of(method: Method, target: float | None, cap_s: float) -> MeasurePolicy:
    """Return when a measurement that counts has settled."""
    return MeasurePolicy(target=target or _DEFAULT_TARGET[method], cap_s=cap_s, block_ms=0.3, warmup_cap_s=0.1)


def segment_profiler(
    method: Method,
    backend: Backend,
    store: MeasurementCache | None,
    *,
    target: float | None,
    cap_s: float,
    batch: int,
    dtype: str,
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> SegmentProfiler:
    """Return what measures segments alone: for screening where they are measured in the network afterwards."""
    policy = SCREENING if method != "isolated" else policy_of(method, target, cap_s)
    return SegmentProfiler(
        backend, store, policy, batch=batch, dtype=dtype, workers=workers, purpose=purpose_of(method), advance=advance
    )


def _entries_in_network(
    net: Network,
    segments: Sequence[Segment],
    isolated: Sequence[LatencyEntry],
    alone: SegmentProfiler,
    changes: ChangeProfiler,
    fixed_ms: float,
    progress: bool,
) -> list[LatencyEntry]:
    """Turn isolated entries into ones that add up inside the network.

    Single layers share the measured latency of the unmerged network in proportion to their isolated ones (their sum
    is what counts: every plan holds each layer once, alone or in a segment). A merged segment is its layers' entries
    plus the change it makes.
    """
    single_ms = [alone.net_ms(net.segment(m, m + 1)) for m in range(len(net.layers))]
    base_ms = changes.base_ms().median_ms
    scale = max(base_ms - fixed_ms, _FLOOR * base_ms) / math.fsum(single_ms)
    replaced_ms = [scale * math.fsum(single_ms[segment.start : segment.end]) for segment in segments]
    promising = [
        segment
        for segment, entry, layers_ms in zip(segments, isolated, replaced_ms, strict=True)
        if segment.is_changed and scale * entry.latency_ms < _WORTH_TIMING * layers_ms
    ]
    with progress_bar("profile: segments in the network", len(promising), enabled=progress) as bar:
        measured = changes.changes(promising, bar.advance)
    entries = []
    for segment, entry, layers_ms in zip(segments, isolated, replaced_ms, strict=True):
        change = measured.get(segment.key)
        if not segment.is_changed:
            entry = replace(entry, latency_ms=layers_ms, spread_ms=scale * entry.spread_ms)
        elif change is None:
            entry = replace(entry, latency_ms=scale * entry.latency_ms, spread_ms=scale * entry.spread_ms)
        else:
            latency_ms = max(layers_ms + change.change_ms, 0.0 if segment.is_identity else _FLOOR * layers_ms)
            spread_ms = (change.high_ms - change.low_ms) / (2 * 1.96)
            entry = replace(entry, latency_ms=latency_ms, spread_ms=spread_ms, runs=change.runs)
        entries.append(entry)
    return entries


def _outside_ms(net: Network, outside: OutsideGraph, profiler: SegmentProfiler) -> float:
    """Return the latency of what lies outside the chains, with the one call of a session that every plan needs."""
    if outside.onnx_bytes is None:
        return profiler.overhead_ms(net.segment(0, 1))
    return profiler.measure_graph(f"outside network:{net.hash}", outside.onnx_bytes).median_ms


def _isolated_entry(
    net: Network, segment: Segment, profiler: SegmentProfiler, bounds: dict[str, float]
) -> LatencyEntry:
    is_chain_start = any(chain.start == segment.start for chain in net.chains)
    facts: dict[str, Any] = {
        "start": segment.start,
        "end": segment.end,
        "start_act": int(is_chain_start or net.has_activation(segment.start)),
        "end_act": int(segment.activation is not None),
        "signature": segment.signature,
        "macs": segment.macs,
        "params": segment.conv.num_params,
    }
    if segment.dropped:
        facts |= {"merged": segment.merged, "kept": segment.kept}
    if segment.is_free:
        return LatencyEntry(latency_ms=0.0, spread_ms=0.0, runs=0, **facts)
    if segment.signature in bounds:
        return LatencyEntry(latency_ms=bounds[segment.signature], spread_ms=0.0, runs=0, **facts)
    raw = profiler.raw[segment.signature]
    return LatencyEntry(latency_ms=profiler.net_ms(segment), spread_ms=raw.spread_ms, runs=raw.runs, **facts)
