"""What a latency depends on besides what is measured: the key of a cache's rows."""

from __future__ import annotations

from layerfold.profiler.backends import Backend, BackendFacts


class Environment(BackendFacts):
    """What every latency of a backend depends on besides what is measured: the cache's key."""

    batch: int
    dtype: str


def environment_of(backend: Backend, *, batch: int, dtype: str) -> Environment:
    """Return what every latency of a backend depends on besides what is measured: the cache's key."""
    return {**backend.provenance(), "batch": batch, "dtype": dtype}
