"""Finished estimates, written one by one, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerfold.importance.requests import Request
from layerfold.importance.scores import Scores

_SCHEMA = 2


@dataclass(frozen=True)
class Estimate:
    """A finished estimate.

    Attributes:
        scores: of the changed network.
        seconds: that it took.
    """

    scores: Scores
    seconds: float


class Journal:
    """A file of JSON lines: first what the estimates belong to, then one line an estimate.

    A file that belongs to other settings, or is none, is set aside as ``<name>.old`` (``.old2``, ...); a half-written
    last line is dropped.

    Args:
        path: the file, or None to keep nothing.
        settings: everything that the estimates depend on.

    Attributes:
        goes_on: whether there was a file of these settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self._done: dict[Request, Estimate] = {}
        self.goes_on = False
        if path is None:
            return
        header = json.dumps({"schema": _SCHEMA, **settings}, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        if lines and lines[0] != header:
            path.rename(_free_name(path))
            lines = []
        self.goes_on = bool(lines)
        for line in lines[1:]:
            try:
                found = json.loads(line)
            except ValueError:
                break
            dropped = tuple(found["entry"].pop("dropped"))
            self._done[Request(**found["entry"], dropped=dropped)] = Estimate(found["scores"], found["seconds"])
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file stays as it is until the new one is whole: a full disk costs no estimate.
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(header + "\n")
            for request, estimate in self._done.items():
                file.write(_line(request, estimate))
        partial.replace(path)

    def get(self, request: Request) -> Estimate | None:
        """Return a finished estimate, or None."""
        return self._done.get(request)

    def add(self, request: Request, estimate: Estimate) -> None:
        """Keep a finished estimate; it is on disk when this returns."""
        self._done[request] = estimate
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(request, estimate))

    @property
    def seconds(self) -> float:
        """What all the estimates took."""
        return sum(estimate.seconds for estimate in self._done.values())


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.chain([0], itertools.count(2)))
    return next(each for each in names if not each.exists())


def _line(request: Request, estimate: Estimate) -> str:
    return json.dumps({"entry": asdict(request), "scores": estimate.scores, "seconds": estimate.seconds}) + "\n"


def cheap_journal(path: Path | None) -> Path | None:
    """Return where the cheap estimates of an adaptive run are kept, beside the dear ones."""
    return None if path is None else path.with_name(f"{path.name}.cheap")


def weights_beside(path: Path) -> Path:
    """Return where weights that entries share are kept, beside the journal of these."""
    return path.with_name(f"{path.name}.weights")


def checkpoint_beside(path: Path) -> Path:
    """Return where their training is kept while it lasts."""
    return path.with_name(f"{path.name}.training")


def remove_journal(path: str | Path) -> None:
    """Remove what ``estimate_importance`` kept for resuming: its table is written."""
    for journal in (Path(path), Path(f"{path}.cheap")):
        for each in (journal, weights_beside(journal), checkpoint_beside(journal)):
            each.unlink(missing_ok=True)
