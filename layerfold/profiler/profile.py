"""Fill a latency table: every candidate segment of a network, on one device."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from layerfold.errors import UsageError
from layerfold.executor import Executor
from layerfold.export.precision import canonical_precision
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.options import ProfileOptions
from layerfold.profiler.backends import Backend
from layerfold.profiler.backends.base import USUAL_PRECISION
from layerfold.profiler.store.cache import MeasurementCache, open_cache
from layerfold.profiler.table.measured import measured_table
from layerfold.profiler.table.together import BackendChoice, MakeFiller, filled_together, shared_path
from layerfold.settings import takes_settings
from layerfold.tables import LatencyTable


@takes_settings(options=ProfileOptions)
@network_call
def profile_network(
    model: nn.Module,
    net: Network,
    backend: str | Backend | BackendChoice = "onnxruntime",
    device: str | None = None,
    *,
    options: ProfileOptions | None = None,
    cache: MeasurementCache | str | os.PathLike[str] | Literal[False] | None = None,
    progress: bool = True,
    **settings: Any,
) -> LatencyTable:
    """Measure every candidate segment of a network and what lies outside its chains.

    Args:
        model: the module that ``net`` was traced from; left untouched. Its weights do not matter.
        net: the traced network.
        backend: a backend's name, or one made with :func:`layerfold.profiler.get_backend` (then ``device``,
            ``threads`` and the precision are its own).
        device: a device of that backend; None for its first.
        options, settings: see :class:`ProfileOptions`; a setting given by name takes the place of that of ``options``.
        cache: file for finished measurements, or one opened with ``layerfold.profiler.store.cache.open_cache``; None
            for the default place, False for none.
        progress: show a bar on stderr.

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

    Example:
        >>> latency = lf.profile_network(model, net, method="isolated", cache=False, progress=False)
        >>> latency
        LatencyTable(6 entries, chains=[(0, 3)], source='latency table')
        >>> f"{latency.entry(0, 3).latency_ms:.3f} ms"
        '... ms'
    """
    options = _in_one_precision(options or ProfileOptions(), None if isinstance(backend, str) else backend)
    choice = BackendChoice.of(backend, device, options) if isinstance(backend, str) else backend
    where = Executor.of(options.executor)
    if not where.is_here:
        make_filler = MakeFiller.of(model, net, choice, where, options, dtype=options.dtype)
        with filled_together(where, make_filler, shared_path(cache)) as shared:
            together = replace(options, workers=shared.workers)
            return measured_table(model, net, shared.backend, shared.store, together, progress=progress)
    chosen = choice.open() if isinstance(choice, BackendChoice) else choice
    store = (
        cache
        if isinstance(cache, MeasurementCache)
        else open_cache(cache, chosen, batch=options.batch, dtype=options.dtype)
    )
    try:
        return measured_table(model, net, chosen, store, options, progress=progress)
    finally:
        if store is not cache:
            store.close()


def _in_one_precision(options: ProfileOptions, backend: Backend | BackendChoice | None) -> ProfileOptions:
    """Return the options with the precision that graphs are run in: an open backend's own, where none was asked for.

    Raises:
        UsageError: another one was asked for; names both.
    """
    asked = canonical_precision(options.dtype)
    if backend is None or isinstance(backend, BackendChoice):
        return replace(options, dtype=asked)
    has = backend.precision
    if asked in (has, USUAL_PRECISION):
        return replace(options, dtype=has)
    if (asked, has) == ("float16", USUAL_PRECISION):  # graphs in halves are taken as they are
        return replace(options, dtype=asked)
    raise UsageError(
        f"dtype={options.dtype!r}: the backend was opened for {has}; open it with precision={asked!r}, or leave "
        "dtype out"
    )
