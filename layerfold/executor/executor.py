"""What a user says of where tasks are done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from layerfold.arguments import check_fields
from layerfold.errors import UsageError, nearest_names
from layerfold.executor.dispatch import WorkerPool
from layerfold.executor.here import Here
from layerfold.executor.places import places_of, processors
from layerfold.executor.processes import ProcessGroup
from layerfold.executor.protocol import MakeWorker, Pool
from layerfold.executor.shipping import pack

EXECUTORS = ("local", "ray")


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Place where the entries of a table are worked out: this process, several, or a cluster.

    Attributes:
        kind: ``local``, this machine, or ``ray``, a cluster (needs the extra ``ray``).
        workers: processes; None for one, or for as many as the cluster has resources for. One local worker is this
            process.
        devices: ``local``: one process each, such as ``cuda:0``; none for the CPU. A GPU that one process does not
            fill may be named several times, though not where latency is measured.
        threads: of each worker; None for the processors divided among the workers, on a cluster for the CPUs of
            ``resources``.
        address: ``ray``: host:port of the cluster; None for the environment's RAY_ADDRESS, and where that is not set,
            a cluster of this machine, which ends with the work.
        resources: ``ray``: what a worker takes of the cluster, for example ``{"GPU": 1, "h200": 1}``: ``CPU``,
            ``GPU``, or a label that nodes were started with.
        retries: how often an entry is tried again whose worker died or failed.

    Example:
        >>> lf.Executor().is_here
        True
        >>> gpus = lf.Executor(devices=("cuda:0", "cuda:1"))
        >>> gpus.is_here
        False
    """

    kind: str = "local"
    workers: int | None = None
    devices: tuple[str, ...] = ()
    threads: int | None = None
    address: str | None = None
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1})
    retries: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in EXECUTORS:
            raise UsageError(
                f"executor={self.kind!r}: must be one of {', '.join(EXECUTORS)}{nearest_names(self.kind, EXECUTORS)}"
            )
        for name, least in (("workers", 1), ("threads", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name}={value}: must be at least {least}")
        if self.kind == "ray" and self.devices:
            raise UsageError(
                f"devices={','.join(self.devices)}: are those of one machine; with executor='ray' say "
                "what a worker needs, for example resources={'GPU': 1}"
            )
        if self.kind == "local" and self.address is not None:
            raise UsageError(f"address={self.address!r}: is a Ray cluster's; use executor='ray'")
        if self.devices and self.workers not in (None, len(self.devices)):
            raise UsageError(
                f"workers={self.workers} and devices={','.join(self.devices)}: there is one worker per "
                "device; leave workers out"
            )

    @classmethod
    def of(cls, executor: str | Executor) -> Executor:
        """Return an executor as it is, or the one of that kind."""
        return cls(kind=executor) if isinstance(executor, str) else executor

    @property
    def is_here(self) -> bool:
        """Whether the only worker is this process."""
        return self.kind == "local" and (len(self.devices) or self.workers or 1) == 1

    @property
    def threads_each(self) -> int | None:
        """Threads of a worker; None for what the libraries choose."""
        if self.threads is not None:
            return self.threads
        if self.kind == "ray":
            return max(int(self.resources.get("CPU", 1)), 1)
        count = len(self.devices) or self.workers or 1
        return None if count == 1 else max(len(processors()) // count, 1)

    @contextmanager
    def open(self, make_worker: MakeWorker[Any, Any]) -> Iterator[Pool]:
        """Have workers until the block ends.

        Raises:
            UsageError: more workers than processors, something that cannot be sent to a process.
            OptionalDependencyError: Ray is not installed.
            ClusterUnavailableError: no cluster answers, or none of its nodes has the resources.
        """
        if self.kind == "ray":
            from layerfold.executor.cluster import cluster_group

            with cluster_group(make_worker, self.address, self.resources, self.workers) as group:
                yield WorkerPool(group, self.retries)
            return
        places = places_of(self.devices, self.workers or 1, self.threads or 1)
        if len(places) == 1:
            yield Here(make_worker, places[0].device or "cpu")
            return
        with closing(ProcessGroup(pack(make_worker), places)) as group:
            yield WorkerPool(group, self.retries)


def parse_resources(text: str) -> dict[str, float]:
    """Return the resources of a text like ``GPU:1,h200:1``.

    Raises:
        UsageError: not names with numbers above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition(":")
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < 1e6:
            raise UsageError(
                f"--ray-resources {text}: give names with amounts above 0, for example GPU:1 or GPU:1,h200:1"
            )
    return found
