"""Open the cache for a backend, and say in a table's provenance what its measurements were like."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal, TextIO

from layerfold.files import JsonObject
from layerfold.graph.description import Segment
from layerfold.profiler.backends import Backend, BackendFacts
from layerfold.profiler.cache import CacheHistory, MeasurementCache


class Environment(BackendFacts):
    """What every latency of a backend depends on besides what is measured: the cache's key."""

    batch: int
    dtype: str


PURPOSES = {"plans": " (screening)", "isolated": ""}
"""Method of profiling -> what stands behind the signature of a segment measured alone."""


def purpose_of(method: str) -> str:
    """Return what stands behind the signature of a segment measured alone, for a method of profiling."""
    return PURPOSES[method]


def environment_of(backend: Backend, *, batch: int, dtype: str) -> Environment:
    """Return what every latency of a backend depends on besides what is measured: the cache's key."""
    return {**backend.provenance(), "batch": batch, "dtype": dtype}


def open_cache(
    path: str | os.PathLike[str] | Literal[False] | None,
    backend: Backend,
    *,
    batch: int = 1,
    dtype: str = "float32",
    log: TextIO | None = None,
) -> MeasurementCache:
    """Open the cache of finished measurements for a backend.

    Args:
        path: the file; None for the default place, False for a cache that ends with the process.
        backend: what measures.
        batch, dtype: of every graph.
        log: a text file that gets one line a measurement: median, interval, blocks, build time, settled or not.

    Raises:
        UsageError: the file or its folder cannot be written.
    """
    environment = environment_of(backend, batch=batch, dtype=dtype)
    return MeasurementCache(path, environment, log=log, has_gpu=is_gpu(environment))


def open_history(
    path: str | os.PathLike[str] | None, backend: Backend, *, batch: int = 1, dtype: str = "float32"
) -> CacheHistory:
    """Open the same for reading only; nothing is made or written."""
    return CacheHistory(path, environment_of(backend, batch=batch, dtype=dtype))


def measurement_facts(store: MeasurementCache, segments: Sequence[Segment], failures: Mapping[str, str]) -> JsonObject:
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


def is_gpu(environment: BackendFacts) -> bool:
    device = str(environment.get("options", {}).get("device", ""))
    return device.startswith("cuda") or environment.get("backend") in ("tensorrt", "torch_tensorrt")
