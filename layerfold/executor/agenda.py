"""Which task is done next by whom: runs of tasks stay together, and nobody is idle while there is a task."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any


class Agenda:
    """Runs of tasks; a worker works off one run after the other.

    When there is no whole run left, it takes the later half of the longest one that another is at.

    Args:
        runs: tasks, in the order to be done.
    """

    def __init__(self, runs: Iterable[Sequence[Any]]) -> None:
        self._free = deque(deque(run) for run in runs if run)
        self._begun: dict[Hashable, deque[Any]] = {}

    def __len__(self) -> int:
        """Return how many tasks nobody has been given."""
        return sum(map(len, self._free)) + sum(map(len, self._begun.values()))

    def next_for(self, worker: Hashable) -> Any:
        """Return a task for a worker.

        Raises:
            IndexError: there is none.
        """
        run = self._begun.get(worker)
        if not run:
            run = self._begun[worker] = self._free.popleft() if self._free else self._half_of_the_longest()
        return run.popleft()

    def give_back(self, worker: Hashable, task: Any) -> None:
        """Take back a task, and with it the rest of the run that the worker was at: others may go on there."""
        self._free.appendleft(deque([task, *self._begun.pop(worker, ())]))

    def _half_of_the_longest(self) -> deque[Any]:
        longest = max(self._begun.values(), key=len, default=deque())
        taken = [longest.pop() for _ in range((len(longest) + 1) // 2)]
        return deque(reversed(taken))
