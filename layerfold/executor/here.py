"""One worker, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from layerfold.executor.protocol import MakeWorker


class Here:
    """See :class:`Pool`. The worker is made when it is first asked; nothing is tried again.

    Args:
        make_worker: see ``MakeWorker``.
        device: that the worker is to use.
    """

    def __init__(self, make_worker: MakeWorker[Any, Any], device: str) -> None:
        self._make_worker, self._device = make_worker, device

    @cached_property
    def _worker(self) -> Any:
        return self._make_worker(self._device)

    size = 1

    def stop(self) -> None:
        raise NotImplementedError("nothing here runs in another thread")

    def share(self, make: Callable[[str], Any], path: str) -> Callable[[], Any]:
        return partial(make, path)

    def map_unordered(self, runs: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, Any]]:
        for run in runs:
            for task in run:
                yield task, self._worker(task)
