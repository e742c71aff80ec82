"""What a backend is: compile an ONNX graph, run it, say what it ran on."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypedDict

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


BackendOptions = dict[str, str | int | float | bool | None]
"""What was chosen and changes latency, by name."""


class BackendFacts(TypedDict):
    """What a latency measured on a backend depends on.

    Attributes:
        backend: its name.
        versions: of the packages that compile and run.
        device: its name, as a person knows it.
        driver: its version; empty where there is none.
        options: what was chosen.
    """

    backend: str
    versions: dict[str, str]
    device: str
    driver: str
    options: BackendOptions


class Runner(Protocol):
    """One compiled graph with fixed random inputs."""

    def run(self) -> None:
        """Do one forward pass on the fixed inputs: the function that is timed. Returns when it is finished."""

    def infer(self, inputs: dict[str, Array]) -> list[Array]:
        """Return the outputs for ``inputs`` (by name; NCHW, whatever the backend's own layout)."""

    def close(self) -> None:
        """Free the session, its threads and its memory."""


class Backend(Protocol):
    """A way to run ONNX graphs on a device.

    A class with these members, registered in the entry-point group ``layerfold.backends``, is a backend
    (docs/backends.md). It is made with keyword options; those of :class:`BackendBase` are what the command line passes.

    Attributes:
        name: as in ``--backend``.
        requires: import name -> package to install; checked without importing.
        extra: layerfold's own extra that installs them, or None where they come with layerfold or by themselves.
        devices: devices it can be asked for; the first is the default.
        precision: that of this instance: ``float32``, ``float16``, ``bfloat16`` or ``int8``.

    It may also have ``is_gpu``: whether its device computes, so that a GPU is watched while it measures. Where it has
    none, a device in ``options`` other than ``cpu`` says so.
    """

    name: ClassVar[str]
    requires: ClassVar[dict[str, str]]
    extra: ClassVar[str | None]
    devices: ClassVar[tuple[str, ...]]

    @property
    def precision(self) -> str: ...

    @classmethod
    def available_devices(cls) -> tuple[str, ...]:
        """Return those of ``devices`` that can be used now; called only where ``requires`` is installed."""

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        """Return the precisions of a device that is available."""

    @property
    def options(self) -> BackendOptions:
        """What was chosen and changes latency, for example ``{"threads": 1}``."""

    def is_available(self) -> bool:
        """Say whether the device can be used now."""

    def provenance(self) -> BackendFacts:
        """Return backend, versions, device, driver, options: what a latency measured here depends on."""

    def compile(self, onnx_bytes: bytes) -> Runner:
        """Compile a serialised ONNX graph with static shapes.

        A float32 graph is run in the backend's precision; one that is float16 already, as it is. int8 takes a graph
        that is quantised: what is only to be timed, ``compile_to_time`` quantises.

        Raises:
            UsageError: a graph that the precision or the runner cannot take.
            ProfilerError: the backend refuses the graph; names the node where it knows it.
        """


def is_gpu(backend: Backend) -> bool:
    """Say whether a backend's device computes, and this machine's processors only launch.

    Then the GPU's clock and heat are to be watched while it measures.
    """
    said = getattr(backend, "is_gpu", None)
    return backend.options.get("device", "cpu") != "cpu" if said is None else bool(said)
