"""The key of a cache's rows: all that a latency depends on besides what is measured."""

from __future__ import annotations

from layerfold.profiler.backends import Backend, BackendFacts


class Environment(BackendFacts):
    """Key of a cache's rows: all that a latency depends on besides what is measured."""

    batch: int
    dtype: str


def environment_of(backend: Backend, *, batch: int, dtype: str) -> Environment:
    """Return the environment of a backend's latencies."""
    return {**backend.provenance(), "batch": batch, "dtype": dtype}
