"""What a latency depends on besides what is measured: the key of a cache's rows."""

from __future__ import annotations

from typing import NotRequired

from layerfold.profiler.backends import Backend, BackendFacts, quantisation_digest


class Environment(BackendFacts):
    """What every latency of a backend depends on besides what is measured: the cache's key."""

    batch: int
    dtype: str
    quantisation: NotRequired[str]


def environment_of(backend: Backend, *, batch: int, dtype: str) -> Environment:
    """Return what every latency of a backend depends on besides what is measured: the cache's key."""
    found: Environment = {**backend.provenance(), "batch": batch, "dtype": dtype}
    if dtype == "int8":
        found["quantisation"] = quantisation_digest()
    return found


def quantisation_of(dtype: str) -> dict[str, str]:
    """Return how graphs of a precision were quantised, as a table's provenance holds it: nothing, but in int8."""
    return {"quantisation": quantisation_digest()} if dtype == "int8" else {}


def is_gpu(environment: BackendFacts) -> bool:
    """Say whether what is measured runs on a GPU, so that its clock and heat are to be watched too."""
    device = str(environment.get("options", {}).get("device", ""))
    return device.startswith("cuda") or environment.get("backend") in ("tensorrt", "torch_tensorrt")
