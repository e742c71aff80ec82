"""Fill a latency table: every candidate segment of a network, on one device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

from torch import nn

from layerfold.errors import UsageError
from layerfold.executor import Executor
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.profiler.backends import Backend
from layerfold.profiler.store.cache import MeasurementCache, open_cache
from layerfold.profiler.table.measured import DEFAULT_TARGET, Method, TableSettings, measured_table
from layerfold.profiler.table.together import BackendChoice, MakeFiller, filled_together, shared_path
from layerfold.tables import LatencyTable


@network_call
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
        cache: file for finished measurements, or one opened with ``layerfold.profiler.store.cache.open_cache``; None
            for the default place, False for none.
        candidates: what to measure; None for ``net.candidates()``.
        method: ``plans`` screens the segments alone, times promising ones between their neighbours, then some tens of
            whole networks, each merged by a random plan, and fits the entries to them
            (``layerfold.profiler.plans.beliefs``): sums of entries then predict networks, and each entry says how sure
            it is. ``isolated`` takes the segments alone: shared between networks, and off by a tenth or more.
        num_plans: whole networks to time for ``plans``; None for one a promising shape, 16 at least and 40 at most.
        progress: show a bar on stderr.
        target: half-width of each 95 % interval at which it has settled, relative to the whole network
            (``plans``, default 0.006) or to the entry (``isolated``, default 0.02).
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
    if method not in DEFAULT_TARGET:
        raise UsageError(f"method={method!r} is not known; choose from {', '.join(DEFAULT_TARGET)}")
    settings = TableSettings(
        batch=batch,
        dtype=dtype,
        candidates=candidates,
        method=method,
        num_plans=num_plans,
        target=target,
        cap_s=cap_s,
    )
    choice = BackendChoice.of(backend, device, threads) if isinstance(backend, str) else backend
    where = Executor.of(executor)
    if not where.is_here:
        make_filler = MakeFiller.of(model, net, choice, where, settings, dtype=dtype)
        with filled_together(where, make_filler, shared_path(cache)) as shared:
            return measured_table(
                model,
                net,
                shared.backend,
                shared.store,
                settings,
                model_name=model_name,
                workers=shared.workers,
                progress=progress,
            )
    chosen = choice.open() if isinstance(choice, BackendChoice) else choice
    store = cache if isinstance(cache, MeasurementCache) else open_cache(cache, chosen, batch=batch, dtype=dtype)
    try:
        return measured_table(
            model, net, chosen, store, settings, model_name=model_name, workers=workers, progress=progress
        )
    finally:
        if store is not cache:
            store.close()
