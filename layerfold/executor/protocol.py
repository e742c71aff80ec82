"""What the parts of an executor are to each other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")

MakeWorker: TypeAlias = Callable[[str], Callable[[Task], Answer]]
"""Called once per worker, where the worker is, with torch's name of its device; what it returns answers tasks.

It must pickle, but for an executor that stays in this process.
"""


class Pool(Protocol):
    """Workers that live as long as the pool, so that what is expensive to make is made once per worker."""

    def map_unordered(self, runs: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield (task, answer) as tasks are finished.

        Args:
            runs: tasks in the order in which they are best done; those of a run by one worker, as far as that leaves
                nobody idle.

        Raises:
            LayerfoldError: what a worker raised of this kind; the tasks that were not finished are left.
            ExecutorError: a task failed on every try, or no worker could be started.
        """

    def share(self, make: Callable[[str], Any], path: str) -> Callable[[], Any]:
        """Return what opens, in a worker, an object that has a file of this machine.

        Workers on this machine each make one; those on other machines ask the same one, which is here.

        Args:
            make: makes it of the path; a class, or a function of a module.
            path: of the file.
        """

    @property
    def size(self) -> int:
        """Most workers that there can be at once."""

    def stop(self) -> None:
        """Have ``map_unordered`` end without an answer, in another thread within a second or two."""


@dataclass(frozen=True)
class Report:
    """Outcome of a worker's start or task.

    Attributes:
        worker: which.
        kind: ``ready`` to be asked; ``answer``; ``refused``: a LayerfoldError, no use to try again; ``failed``: another
            error; ``dead``: the worker is gone.
        value: the answer, the error, or a line that says why.
    """

    worker: Hashable
    kind: Literal["ready", "answer", "refused", "failed", "dead"]
    value: Any = None


class WorkerGroup(Protocol):
    """Workers of one kind, each asked one task at a time.

    Attributes:
        size: how many can be had at once.
    """

    size: int

    def start(self) -> Hashable:
        """Begin to start a worker; a report says when it is ready."""

    def end(self, worker: Hashable) -> None:
        """End a worker that could not be started, and has nothing to do."""

    def ask(self, worker: Hashable, task: Any) -> None:
        """Give a ready worker a task; a report says what came of it."""

    def share(self, make: Callable[[str], Any], path: str) -> Callable[[], Any]:
        """As of :class:`Pool`."""

    def wait(self) -> Sequence[Report]:
        """Wait for reports; may return none after a while."""

    def close(self) -> None:
        """End every worker now."""
