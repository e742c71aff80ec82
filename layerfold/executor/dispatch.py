"""Hand tasks to workers, try those again whose worker died, and give up where that does not help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from layerfold.errors import ExecutorError
from layerfold.executor.agenda import Agenda
from layerfold.executor.protocol import Report, WorkerGroup


class WorkerPool:
    """A pool of workers that may die; see :class:`Pool`.

    A worker has one task at a time, and an answer is handed on the moment it comes: a worker that is killed costs what
    it had done of that task.

    Args:
        group: the workers.
        retries: how often a task that failed, and a start that failed, is tried again.
    """

    def __init__(self, group: WorkerGroup, retries: int) -> None:
        self._group, self._retries = group, retries
        self._staff: set[Hashable] = set()
        self._starting: set[Hashable] = set()
        self._idle: list[Hashable] = []
        self._failed_starts = 0
        self._is_stopped = False

    def map_unordered(self, runs: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, Any]]:
        agenda = Agenda(runs)
        doing: dict[Hashable, Any] = {}
        failures: Counter[Any] = Counter()
        while (len(agenda) or doing) and not self._is_stopped:
            while len(self._staff) < min(self._group.size, len(agenda) + len(doing)):
                worker = self._group.start()
                self._staff.add(worker)
                self._starting.add(worker)
            while self._idle and len(agenda):
                worker = self._idle.pop()
                doing[worker] = agenda.next_for(worker)
                self._group.ask(worker, doing[worker])
            for report in self._group.wait():
                self._take_note(report)
                if report.worker not in doing:
                    self._check_start(report)
                    continue
                task = doing.pop(report.worker)
                if report.kind == "answer":
                    yield task, report.value
                    continue
                failures[task] += 1
                if failures[task] > self._retries:
                    raise ExecutorError(
                        f"{task}: failed {failures[task]} times, the last time since {report.value}; "
                        "what is finished is kept, mend that and run again"
                    )
                agenda.give_back(report.worker, task)

    def share(self, make: Callable[[str], Any], path: str) -> Callable[[], Any]:
        return self._group.share(make, path)

    def stop(self) -> None:
        self._is_stopped = True

    @property
    def size(self) -> int:
        return self._group.size

    def _take_note(self, report: Report) -> None:
        if report.kind == "refused":
            raise report.value
        is_start = report.worker in self._starting
        self._starting.discard(report.worker)
        if report.kind == "dead" or (is_start and report.kind == "failed"):
            self._staff.discard(report.worker)
            if report.worker in self._idle:
                self._idle.remove(report.worker)
            if report.kind == "failed":
                self._group.end(report.worker)
        else:
            self._idle.append(report.worker)

    def _check_start(self, report: Report) -> None:
        if report.kind == "ready":
            self._failed_starts = 0
            return
        self._failed_starts += 1
        if self._failed_starts > self._retries:
            raise ExecutorError(
                f"no worker could be started in {self._failed_starts} tries, the last time since "
                f"{report.value}; what is finished is kept, mend that and run again"
            )
