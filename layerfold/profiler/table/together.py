"""Several processes fill one cache, of this machine or of a cluster; the table is read off it where it was asked for.

Every worker goes the same way through the measurements (:func:`layerfold.profiler.table.measured.measured_table`),
claims what it measures next (:mod:`layerfold.profiler.store.claims`) and stores each result at once. The process that
asked goes it too, and measures nothing: it may well run where there is no such device.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

from torch import nn

from layerfold.errors import ProfilerError, ProvenanceMismatchError, UsageError
from layerfold.executor import Executor, Pool
from layerfold.export.precision import graph_dtype
from layerfold.graph import Network, trace_again
from layerfold.options import ProfileOptions
from layerfold.profiler.backends import Backend, BackendBase, BackendFacts, Runner, get_backend, is_gpu
from layerfold.profiler.machine.conditions import Conditions
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.checked import Reading
from layerfold.profiler.store.environment import Environment, environment_of
from layerfold.profiler.store.file import MEMORY
from layerfold.profiler.store.rows import RowFile
from layerfold.profiler.table.measured import measured_table

_LOOK_EVERY_S = 0.25
_OF_GRAPHS = ("batch", "dtype", "quantisation")
"""What an environment says of the graphs, and not of the device."""
_ENDS_WITHIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class BackendChoice:
    """A backend that is to be opened where it is used.

    Attributes:
        name, device, options: as of ``get_backend``.
    """

    name: str
    device: str | None
    options: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, device: str | None, options: ProfileOptions) -> BackendChoice:
        """Return the choice that these arguments of ``profile_network`` make."""
        # Halves are written into the graphs, which a backend of any precision takes as they are.
        precision = {"precision": options.dtype} if graph_dtype(options.dtype) != options.dtype else {}
        return cls(name=name, device=device, options={"threads": options.threads, **precision})

    def open(self) -> Backend:
        """Open it."""
        return get_backend(self.name, device=self.device, **self.options)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Task of a worker: to fill the cache, or, without ``rows``, for the facts of its device.

    Attributes:
        number: tells one task from another.
        rows: opens the cache's rows.
        environment: that the worker's device must have.
        workers: processes that fill the cache together.
    """

    number: int = 0
    rows: Callable[[], Any] | None = None
    environment: Environment | None = None
    workers: int = 1

    def __hash__(self) -> int:
        return self.number

    def __str__(self) -> str:
        return f"measuring, worker {self.number}"


@dataclass(frozen=True, kw_only=True)
class _DeviceFacts:
    """Facts of a worker's device: what every latency measured there depends on, and the dtype of every graph."""

    environment: Environment
    dtype: str


@dataclass(frozen=True, kw_only=True)
class MakeFiller:
    """Makes, in a process of its own, what fills a cache.

    Attributes:
        model, net: as of ``profile_network``.
        backend: to be opened.
        options: what is measured.
        dtype: None for the precision of the backend as it is opened.
        log: path of a file that gets a line per measurement, or None.
    """

    model: nn.Module
    net: Network
    backend: BackendChoice
    options: ProfileOptions
    dtype: str | None
    log: str | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        net: Network,
        backend: Backend | BackendChoice,
        executor: Executor,
        options: ProfileOptions,
        *,
        dtype: str | None = None,
        log: str | None = None,
    ) -> MakeFiller:
        """Return it for an executor, whose devices are the backend's.

        Raises:
            UsageError: an open backend, which cannot be sent, or a device that is named twice.
        """
        if not isinstance(backend, BackendChoice):
            raise UsageError(
                f"backend={type(backend).__name__}: is open in this process, and every worker of the "
                "executor needs one of its own; name it, for example backend='onnxruntime'"
            )
        if len(set(executor.devices)) < len(executor.devices):
            raise UsageError(
                f"devices={','.join(executor.devices)} names one twice; two processes on one device disturb each other"
            )
        if executor.devices:
            if backend.device is not None:
                raise UsageError(
                    f"--device {backend.device} and --devices {','.join(executor.devices)}: give one of the two"
                )
            # A worker sees its own GPU only, and a backend knows it as the first.
            backend = replace(backend, device=executor.devices[0].partition(":")[0])
        return cls(model=model, net=net, backend=backend, options=options, dtype=dtype, log=log)

    def __call__(self, device: str) -> Callable[[Task], Any]:
        backend = self.backend.open()
        net = trace_again(self.model, self.net)
        return lambda task: self._run(task, backend, net)

    def _run(self, task: Task, backend: Backend, net: Network) -> _DeviceFacts | Conditions | None:
        options = replace(self.options, dtype=self.dtype or backend.precision, workers=task.workers)
        here = environment_of(backend, batch=options.batch, dtype=options.dtype)
        if task.rows is None:
            return _DeviceFacts(environment=here, dtype=options.dtype)
        first = task.environment
        if first is not None and here != first:
            raise ProvenanceMismatchError(
                f"a worker's device is {here['device']}, driver {here['driver']}, the first "
                f"one's {first['device']}, driver {first['driver']}: one table is of one "
                "kind of device, profile them one after the other"
            )
        with ExitStack() as stack:
            log = stack.enter_context(open(self.log, "a", encoding="utf-8")) if self.log else None
            store = stack.enter_context(
                MeasurementCache(None, here, log=log, has_gpu=is_gpu(backend), rows=task.rows())
            )
            measured_table(self.model, net, backend, store, options)
            return store.conditions()


class WatchedCache(MeasurementCache):
    """A cache that workers fill: nothing is claimed here, and what turns up counts as measured in this run.

    Args:
        path, environment: as of :class:`MeasurementCache`.
        workers: who fill it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, environment: Environment, workers: _Workers) -> None:
        super().__init__(path, environment)
        self.poll_s = _LOOK_EVERY_S
        self._workers = workers
        self._known_before = set(self.measured())

    def claim(self, signatures: Sequence[str], most: int) -> list[str]:
        self._workers.check()
        return []

    def conditions(self) -> Conditions | None:
        return self._workers.conditions()

    def look_up(self, signature: str) -> Reading | None:
        found = super().look_up(signature)
        if found is not None and signature not in self._known_before:
            self.report.measured(signature, found, None)
        return found


class RemoteBackend(BackendBase):
    """Stands for the workers' backend where it cannot be opened: it knows the facts, and compiles nothing.

    Args:
        environment: of the workers.
    """

    name = "remote"
    requires: ClassVar[dict[str, str]] = {}

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        facts = {name: value for name, value in environment.items() if name not in _OF_GRAPHS}
        self._facts = cast(BackendFacts, facts)

    def provenance(self) -> BackendFacts:
        return {**self._facts}

    def compile(self, onnx_bytes: bytes) -> Runner:
        raise ProfilerError("measuring is for the workers of the executor")


@dataclass(frozen=True, kw_only=True)
class SharedCache:
    """A cache while it is filled.

    Attributes:
        store: to be looked on at.
        backend: with the workers' facts.
        dtype: of every graph.
        workers: how many fill it.
    """

    store: WatchedCache
    backend: RemoteBackend
    dtype: str
    workers: int


@contextmanager
def filled_together(
    executor: Executor, make_filler: MakeFiller, path: str | os.PathLike[str] | None, *, retry_failed: bool = False
) -> Iterator[SharedCache]:
    """Have a cache filled by an executor's workers until the block ends.

    Args:
        executor: where.
        make_filler: what its workers do.
        path: the cache's file; None for the default place.
        retry_failed: whether what could not be built before is tried again.

    Raises:
        LayerfoldError: of the workers or of the executor; within the block as soon as it is known.
    """
    with executor.open(make_filler) as pool:
        ((_, facts),) = pool.map_unordered([[Task()]])
        workers = _Workers(pool, facts.environment)
        with closing(WatchedCache(path, facts.environment, workers)) as store:
            if retry_failed:
                store.forget_failures()
            workers.start(pool.share(RowFile, str(store.path)))
            try:
                yield SharedCache(
                    store=store, backend=RemoteBackend(facts.environment), dtype=facts.dtype, workers=pool.size
                )
            finally:
                workers.stop()


def shared_path(
    cache: MeasurementCache | str | os.PathLike[str] | Literal[False] | None,
) -> str | os.PathLike[str] | None:
    """Return the file that workers can share.

    Raises:
        UsageError: there is none.
    """
    if cache is False or (isinstance(cache, MeasurementCache) and str(cache.path) == MEMORY):
        raise UsageError(
            "cache=False (--no-cache): several processes share what they measure through the cache; leave it out"
        )
    return cache.path if isinstance(cache, MeasurementCache) else cache


class _Workers:
    """The workers at their tasks, watched from a thread."""

    def __init__(self, pool: Pool, environment: Environment) -> None:
        self._pool, self._environment = pool, environment
        self._error: Exception | None = None
        self._conditions: list[Conditions | None] = []
        self._thread = threading.Thread(daemon=True, target=self._watch)

    def start(self, rows: Callable[[], Any]) -> None:
        size = self._pool.size
        tasks = [
            [Task(number=number, rows=rows, environment=self._environment, workers=size)]
            for number in range(1, size + 1)
        ]
        self._thread = threading.Thread(daemon=True, target=self._watch, args=(tasks,))
        self._thread.start()

    def _watch(self, tasks: Sequence[Sequence[Task]]) -> None:
        try:
            for _, conditions in self._pool.map_unordered(tasks):
                self._conditions.append(conditions)
        except Exception as error:  # handed over to the thread that waits
            self._error = error

    def stop(self) -> None:
        """Ask no more of them: what they ask themselves goes away now."""
        self._pool.stop()
        self._thread.join(_ENDS_WITHIN_S)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def conditions(self) -> Conditions | None:
        """Return the conditions of the worker that has most to say of them; None where none has ended."""
        self._thread.join(_ENDS_WITHIN_S)
        self.check()
        known = [each for each in self._conditions if each is not None]
        return max(known, key=lambda each: len(each.warnings), default=None)
