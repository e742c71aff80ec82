"""What a backend is: compile an ONNX graph, run it, say what it ran on."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Runner(Protocol):
    """One compiled graph with fixed random inputs."""

    def run(self) -> None:
        """Do one forward pass on the fixed inputs: the function that is timed. Returns when it is finished."""

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        """Return the outputs for ``inputs`` (by name)."""

    def close(self) -> None:
        """Free the session, its threads and its memory."""


class Backend(Protocol):
    """A way to run ONNX graphs on a device.

    Attributes:
        name: as in ``--backend``.
        requires: import name -> package to install; checked without importing.
        extra: layerfold's own extra that installs them, or None where they come with layerfold.
        devices: devices it can be asked for.
    """

    name: ClassVar[str]
    requires: ClassVar[dict[str, str]]
    extra: ClassVar[str | None]
    devices: ClassVar[tuple[str, ...]]

    @property
    def options(self) -> dict[str, Any]:
        """What was chosen and changes latency, for example ``{"threads": 1}``."""

    def is_available(self) -> bool:
        """Say whether the device can be used now."""

    def provenance(self) -> dict[str, Any]:
        """Return backend, versions, device, driver, options: what a latency measured here depends on."""

    def compile(self, onnx_bytes: bytes) -> Runner:
        """Compile a serialised ONNX graph with static shapes."""
