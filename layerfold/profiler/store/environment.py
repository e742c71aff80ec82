"""The key of a cache's rows: all that a latency depends on besides what is measured."""

from __future__ import annotations

from typing import NotRequired, cast

from layerfold.profiler.backends import Backend, BackendFacts, is_symmetric, quantisation_digest


class Environment(BackendFacts):
    """Key of a cache's rows: all that a latency depends on besides what is measured."""

    batch: int
    dtype: str
    quantisation: NotRequired[str]


def environment_of(backend: Backend, *, batch: int, dtype: str) -> Environment:
    """Return what every latency of a backend depends on besides what is measured: the cache's key."""
    how = quantisation_of(backend, dtype)
    quantised = {} if how is None else {"quantisation": how}
    return cast(Environment, {**backend.provenance(), "batch": batch, "dtype": dtype, **quantised})


def quantisation_of(backend: Backend, dtype: str) -> str | None:
    """Return what tells the way in which graphs are quantised for a backend from others; None, but in int8."""
    if dtype != "int8":
        return None
    facts = backend.provenance()  # of the workers, where they are elsewhere
    return quantisation_digest(is_symmetric(facts["backend"], facts["options"]))
