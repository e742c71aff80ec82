"""Workers that are actors of a Ray cluster."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from layerfold.errors import ClusterUnavailableError, OptionalDependencyError, UsageError
from layerfold.executor.places import processors
from layerfold.executor.protocol import MakeWorker, Report
from layerfold.executor.shipping import Payload, TaskRunner, pack, unpacked

_ANSWERS_WITHIN_S = 5.0
_HEALTHY_WITHIN_S = 30.0
_POLL_S = 1.0
_SKIPPED = "RAY_DEDUP_LOGS_SKIP_REGEX"


@contextmanager
def cluster_group(
    make_worker: MakeWorker[Any, Any], address: str | None, resources: Mapping[str, float], workers: int | None
) -> Iterator[ClusterGroup]:
    """Connect to a cluster, or start one here, and have workers there until the block ends.

    Raises:
        OptionalDependencyError: Ray is not installed.
        ClusterUnavailableError: no cluster answers, or none of its nodes has the resources.
    """
    ray = _import_ray()
    with _connected(ray, address, resources, workers):
        room = _room_for(ray, resources)
        if room == 0:
            raise ClusterUnavailableError(
                f"ray_resources={_text(resources)}: no node of the cluster has as much; the cluster has "
                f"{_text(ray.cluster_resources())}; ask for less, or start a node with it"
            )
        payload = pack(make_worker, ray.cloudpickle.dumps)
        with closing(ClusterGroup(ray, payload, min(workers or room, room), resources)) as group:
            yield group


class ClusterGroup:
    """See :class:`WorkerGroup`. Ray places the workers and finds out when one dies; which task it had is known here.

    Args:
        ray: the library.
        payload: makes a worker; sent to each node once.
        size: workers.
        resources: of each.
    """

    def __init__(self, ray: Any, payload: Payload, size: int, resources: Mapping[str, float]) -> None:
        self.size = size
        self._ray, self._payload = ray, ray.put(payload)
        self._device = "cuda:0" if resources.get("GPU") else "cpu"  # Ray shows a worker no other GPU
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        self._actor = ray.remote(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            resources=others,
            max_restarts=0,
            max_task_retries=0,
        )(TaskRunner)
        self._started: dict[Hashable, Any] = {}
        self._pending: dict[Any, Hashable] = {}

    def start(self) -> Hashable:
        actor = self._actor.remote(self._payload, self._device)
        worker: str = actor._actor_id.hex()
        self._started[worker] = actor
        self._pending[actor.start.remote()] = worker
        return worker

    def end(self, worker: Hashable) -> None:
        self._ray.kill(self._started.pop(worker))

    def ask(self, worker: Hashable, task: Any) -> None:
        self._pending[self._started[worker].answer.remote(task)] = worker

    def share(self, make: Callable[[str], Any], path: str) -> Callable[[], Any]:
        ray = self._ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node_id=ray.get_runtime_context().get_node_id(), soft=False
        )
        actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Desk).remote(make, os.path.abspath(path))
        self._started[actor] = actor  # ends with the others
        return partial(_Afar, actor, ray.get(actor.ask.remote("path")))

    def wait(self) -> Sequence[Report]:
        # Not for ever: a signal is looked at in between.
        done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_POLL_S)
        return [self._report(reference) for reference in done]

    def close(self) -> None:
        for actor in self._started.values():
            self._ray.kill(actor)
        self._started.clear()

    def _report(self, reference: Any) -> Report:
        worker = self._pending.pop(reference)
        try:
            kind, value = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(self._started.pop(worker))
            return Report(worker, "dead", f"its worker is gone ({_reason(error)})")
        return Report(worker, kind, unpacked(kind, value))


class _Desk:
    """An actor beside a file: makes an object that has it, and passes on what others ask of it."""

    def __init__(self, make: Callable[[str], Any], path: str) -> None:
        self._object = make(path)

    def ask(self, name: str, *arguments: Any) -> Any:
        found = getattr(self._object, name)
        return found(*arguments) if callable(found) else found


class _Afar:
    """An object at a desk: its methods are those of that one, and raise what it raises."""

    def __init__(self, desk: Any, path: str) -> None:
        self._desk, self.path = desk, path

    def __getattr__(self, name: str) -> Any:
        import ray

        return lambda *arguments: ray.get(self._desk.ask.remote(name, *arguments))

    def close(self) -> None:
        """Leave it open: it is not this process's."""


def _import_ray() -> Any:
    # Read when Ray is imported: what it says of workers that die goes to stdout, which is for results; we say it.
    silent = {} if _SKIPPED in os.environ else {_SKIPPED: "."}
    os.environ.update(silent)
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise OptionalDependencyError("executor='ray' needs the package ray; pip install 'layerfold[ray]'") from error
    finally:
        for name in silent:
            del os.environ[name]
    return ray


@contextmanager
def _connected(ray: Any, address: str | None, resources: Mapping[str, float], workers: int | None) -> Iterator[None]:
    """Be connected within the block; a connection that the caller has already is used and kept."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise a warning, of what is so anyway
    folder = None
    try:
        if address is not None:
            _check_address(address)
            try:
                ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise _unreachable(address, " ".join(str(error).split())[:200]) from error
        else:
            # A folder of our own, which ends with the cluster: Ray leaves its logs. Its sockets' paths must be short.
            folder = tempfile.mkdtemp(prefix=f"layerfold-ray-{os.getpid()}-", dir=_short_folder())
            # Ray's actor of 1 CPU is no claim on a processor: as many workers as were asked for fit.
            cpus = max(len(processors()), int((workers or 1) * resources.get("CPU", 0)))
            ray.init(num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **quiet)
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_address(address: str) -> None:
    """Say within seconds that nothing is there: Ray itself tries for minutes, and writes about it."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise UsageError(
            f"ray_address={address!r}: give host:port of the cluster's head, or auto, and run this on one of its nodes"
        )
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        found = subprocess.run(command, capture_output=True, timeout=_HEALTHY_WITHIN_S, check=False)
    except subprocess.TimeoutExpired:
        raise _unreachable(address, "something listens there, but does not answer as Ray does") from None
    if found.returncode:
        raise _unreachable(address, "what listens there is no healthy Ray cluster")


def _unreachable(address: str, why: str) -> ClusterUnavailableError:
    return ClusterUnavailableError(
        f"ray_address={address!r}: no Ray cluster answers there ({why}); see `ray status` "
        "on its head, or leave the address out to use this machine"
    )


def _short_folder() -> str | None:
    return "/tmp" if Path("/tmp").is_dir() else None


def _room_for(ray: Any, resources: Mapping[str, float]) -> int:
    """Return how many workers the nodes that are up have resources for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0) / amount + 1e-9) for name, amount in resources.items()) for node in nodes)


def _text(resources: Mapping[str, float]) -> str:
    return ",".join(
        f"{name}:{amount:g}"
        for name, amount in sorted(resources.items())
        if not name.startswith("node:") and "memory" not in name
    )


def _reason(error: BaseException) -> str:
    """Return the first line of what Ray says; further ones are advice on Ray."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
