"""One method's estimates of one network: made when asked for, each kept at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from layerfold.errors import UsageError
from layerfold.importance.estimators import ESTIMATORS, Estimator, Training
from layerfold.importance.journal import Journal
from layerfold.importance.requests import Request
from layerfold.importance.scores import SCORES, Scores, change_of, column_of
from layerfold.importance.subject import Subject


class Filling:
    """What a method says of a network's entries.

    Args:
        method: one of ``ESTIMATORS``.
        score: one of ``SCORES``, which the method must know.
        training: how entries are trained.
        make_subject: makes the network to ask, given whether its statistics are measured anew; called once, when first
            needed.
        journal_path: file that keeps finished entries, or None.
        settings: what the answers depend on besides the method.

    Raises:
        UsageError: a score that the method cannot tell.
    """

    def __init__(
        self, method: str, score: str, training: Training, make_subject: Callable[[bool], Subject],
        journal_path: Path | None, settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self.kind = ESTIMATORS[method]
        if column_of(score) not in self.kind.known_scores:
            known = ", ".join(each for each in SCORES if column_of(each) in self.kind.known_scores)
            raise UsageError(f"score={score!r}: method={method!r} cannot tell it; use score={known}, or another method")
        self._training, self._make_subject = training, make_subject
        self.options = self.kind.options(training)
        self._journal = Journal(journal_path, {**settings, "method": method, **self.options})
        self.seconds = 0.0

    @cached_property
    def subject(self) -> Subject:
        """The network that is asked."""
        return self._make_subject(self.kind.is_recalibrated)

    @cached_property
    def _estimator(self) -> Estimator:
        return self.kind(self.subject, self._training)

    def known(self, requests: Iterable[Request]) -> int:
        """Return how many of these were estimated before."""
        return sum(self._journal.get(request) is not None for request in requests)

    def fill(self, requests: Iterable[Request], advance: Callable[[], None]) -> None:
        """Estimate what is not known yet.

        Args:
            requests: entries; what changes nothing is left out.
            advance: called after each estimate that was made now.
        """
        for request in requests:
            if self._journal.get(request) is None and not request.changes_nothing(self.subject.net):
                began = time.monotonic()
                self._journal.add(request, self._estimator.scores_of(request))
                self.seconds += time.monotonic() - began
                advance()

    def change(self, request: Request) -> Scores:
        """Return what each score changes by; the entry must be filled, or change nothing."""
        original = self.subject.original
        return change_of(self._journal.get(request) or original, original)
