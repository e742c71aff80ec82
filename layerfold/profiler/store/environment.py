"""What a latency depends on besides what is measured: the key of a cache's rows."""

from __future__ import annotations

from typing import NotRequired, cast

from layerfold.profiler.backends import Backend, BackendFacts, is_symmetric, quantisation_digest


class Environment(BackendFacts):
    """What every latency of a backend depends on besides what is measured: the cache's key."""

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


def is_gpu(environment: BackendFacts) -> bool:
    """Say whether what is measured runs on a GPU, so that its clock and heat are to be watched too."""
    device = str(environment.get("options", {}).get("device", ""))
    return device.startswith("cuda") or environment.get("backend") in ("tensorrt", "torch_tensorrt")
