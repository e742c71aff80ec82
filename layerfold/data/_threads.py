"""Work on several images or batches at once. NumPy and Pillow free the interpreter's lock. No torch."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_TOGETHER = 8
_AHEAD = 2


def num_workers() -> int:
    """Return how many threads or processes prepare images: 1 in a worker process, which has others beside it."""
    return 1 if multiprocessing.current_process().daemon else min(os.cpu_count() or 1, 8)


def for_each(function: Callable[[T], object], items: Sequence[T]) -> None:
    """Call ``function`` on every item, several at once; the first error is raised, and what was not begun is left."""
    if len(items) <= _TOGETHER or num_workers() == 1:
        for item in items:
            function(item)
        return

    def some(first: int) -> None:
        for item in items[first : first + _TOGETHER]:
            function(item)

    with ThreadPoolExecutor(max_workers=num_workers()) as pool:
        # `list` hands on the first error; the others are cancelled with the pool.
        list(pool.map(some, range(0, len(items), _TOGETHER)))


@dataclass(frozen=True)
class _Failure:
    error: BaseException


def prepared_ahead(makes: Iterable[Callable[[], R]]) -> Iterator[R]:
    """Yield what each of ``makes`` returns, in order, made in a thread that is at most a few ahead of the caller.

    An error is raised where its item would have been. The thread ends with the iterator: at its end, or when it is
    closed or dropped half way. It must not draw from global generators of random numbers: the caller does.
    """
    ready: queue.Queue[R | _Failure] = queue.Queue(maxsize=_AHEAD)
    is_dropped = threading.Event()
    waiting = list(makes)

    def work() -> None:
        for make in waiting:
            if is_dropped.is_set():
                return
            try:
                ready.put(make())
            except BaseException as error:
                ready.put(_Failure(error))
                return

    thread = threading.Thread(target=work, name="layerfold-batches", daemon=True)
    thread.start()
    try:
        for _ in waiting:
            item = ready.get()
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        is_dropped.set()
        # The thread may wait for room: at most one more item goes in after this.
        with suppress(queue.Empty):
            while True:
                ready.get_nowait()
        thread.join()
