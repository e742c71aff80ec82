"""One method's estimates of one network: made when asked for, each kept at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from layerfold.errors import UsageError
from layerfold.executor import Pool
from layerfold.files import JsonObject
from layerfold.graph import Network
from layerfold.importance.asking import Lesson, Question, runs_of
from layerfold.importance.estimators import ESTIMATORS, Training
from layerfold.importance.journal import Estimate, Journal, checkpoint_beside, weights_beside
from layerfold.importance.recovery import lasting_share
from layerfold.importance.requests import NOTHING, TOGETHER, Request, entries_hash
from layerfold.importance.scores import ScoresByName, change_of, column_of, importance_from_change
from layerfold.importance.sharing import WeightsFile
from layerfold.options.importance import SCORES
from layerfold.tables import ImportanceEntry

_EXTRA = ("agreement", "kl")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Task that the methods which fill one table share.

    Attributes:
        net: the network.
        score: one of ``SCORES``.
        entries: all that may be asked for: what is trained once for them depends on each.
        settings: what the answers depend on besides the method.
        pool: workers that answer a ``Question`` or take a ``Lesson``.
        is_local: whether the workers see this machine's files and stderr.
        scratch: folder for what else would be kept beside the journal, where there is none.
        progress: show a bar of that training on stderr.
    """

    net: Network
    score: str
    entries: Sequence[Request]
    settings: JsonObject
    pool: Pool
    is_local: bool
    scratch: Path
    progress: bool


class Filling:
    """Answers of a method to a network's entries.

    Args:
        work: what is asked, and who answers.
        method: one of ``ESTIMATORS``, which must know the score.
        training: how entries are trained.
        journal_path: file that keeps finished entries, or None.

    Attributes:
        options: what of the training the answers depend on.

    Raises:
        UsageError: a score that the method cannot tell.
    """

    def __init__(self, work: Work, method: str, training: Training, journal_path: Path | None) -> None:
        self._kind, self._score = ESTIMATORS[method], work.score
        if column_of(work.score) not in self._kind.known_scores:
            known = ", ".join(each for each in SCORES if column_of(each) in self._kind.known_scores)
            raise UsageError(
                f"score={work.score!r}: method={method!r} cannot tell it; use score={known}, or another method"
            )
        self._method, self._training, self._net, self._pool = method, training, work.net, work.pool
        self.options = self._kind.options(training)
        self._together = (NOTHING, *work.entries)
        shared = {"entries": entries_hash(self._together)} if self._kind.shares_training else {}
        self._journal = Journal(journal_path, {**work.settings, "method": method, **self.options, **shared})
        self._is_local, self._progress = work.is_local, work.progress
        self._beside = journal_path or work.scratch / method
        if not self._journal.goes_on:
            checkpoint_beside(self._beside).unlink(missing_ok=True)

    @cached_property
    def _weights(self) -> Callable[[], WeightsFile] | None:
        """What opens the weights that entries are estimated with; they are trained now, if they were not before."""
        if not self._kind.shares_training:
            return None
        file, checkpoint = WeightsFile(weights_beside(self._beside)), checkpoint_beside(self._beside)
        if self._journal.get(TOGETHER) is None or not file.is_whole:
            lesson = Lesson(
                training=self._training,
                requests=self._together,
                checkpoint_path=checkpoint if self._is_local else None,
                progress=self._progress and self._is_local,
            )
            ((_, learned),) = self._pool.map_unordered([[lesson]])
            file.write(learned.weights)
            self._journal.add(TOGETHER, Estimate({}, learned.seconds))
            checkpoint.unlink(missing_ok=True)
        return self._pool.share(WeightsFile, str(file.path))

    @cached_property
    def _untrained(self) -> ScoresByName:
        """What the original scores as it is, where the entries are estimated."""
        ((_, estimate),) = self._pool.map_unordered([[self._question(None)]])
        scores: ScoresByName = estimate.scores
        return scores

    @property
    def seconds(self) -> float:
        """Seconds that the estimates took, those of earlier runs included."""
        return self._journal.seconds

    @property
    def original(self) -> ScoresByName:
        """Scores that changes are relative to: the original's, after the same training if changed networks get one.

        Otherwise every merge would seem to gain what any further training gains. (Appendix B of the paper takes that
        off as the mean importance of single layers, which it trains too.)
        """
        found = self._journal.get(NOTHING)
        return self._untrained if found is None else found.scores

    def needed(self, requests: Iterable[Request]) -> list[Request]:
        """Return what must be estimated so that these entries are known."""
        return [*([NOTHING] if self._kind.trains_original else []), *requests]

    def unknown(self, requests: Iterable[Request]) -> list[Request]:
        """Return which of these were not estimated yet."""
        return [request for request in requests if self._journal.get(request) is None]

    def prepare(self, unknown: Sequence[Request]) -> None:
        """Train what these entries share, if they share anything: it shows a bar of its own, and so comes first."""
        if unknown:
            _ = self._weights

    def fill(self, requests: Sequence[Request], advance: Callable[[], None]) -> None:
        """Estimate what is not known yet.

        Args:
            requests: entries that change something.
            advance: called after each estimate that is made.
        """
        wanted = runs_of([self._question(request) for request in self.unknown(requests)])
        for question, estimate in self._pool.map_unordered(wanted):
            self._journal.add(question.request, estimate)
            advance()

    def importance(self, request: Request) -> float:
        """Return the importance of an entry by the score; 0 where the entry was not estimated."""
        importance = importance_from_change(self._change(request), self._score)
        return importance * lasting_share(self._net, request) if self._kind.looks_ahead else importance

    def entry(self, request: Request) -> ImportanceEntry:
        """Return a row of the table: what was estimated, or no change."""
        change = self._change(request)
        return request.entry(
            self.importance(request),
            val_loss=change.get("val_loss"),
            val_acc=change.get("val_acc"),
            extra={name: change[name] for name in _EXTRA if name in change},
        )

    def _change(self, request: Request) -> ScoresByName:
        original = self.original
        estimate = self._journal.get(request)
        return change_of(original if estimate is None else estimate.scores, original)

    def _question(self, request: Request | None) -> Question:
        return Question(method=self._method, training=self._training, request=request, weights=self._weights)
