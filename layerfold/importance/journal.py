"""Finished estimates, written one by one, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le

from layerfold.errors import LayerfoldError, UsageError, WriteError
from layerfold.files import Finite, JsonObject, parse_json, read_bytes, write_text
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName
from layerfold.tables import ImportanceTable

_SCHEMA = 3
_WITHOUT_CHECKSUMS = 2
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the file; ``check`` is a hash of the others, which files of an older version lack."""

    entry: Request
    scores: dict[str, Finite]
    seconds: Annotated[float, Ge(0), Le(1e12)]
    check: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A finished estimate.

    Attributes:
        scores: of the changed network.
        seconds: that it took.
    """

    scores: ScoresByName
    seconds: float


class Journal:
    """A file of JSON lines: first what the estimates belong to, then one line per estimate, each with a hash.

    A file that belongs to other settings, or is none, is set aside as ``<name>.old`` (``.old2``, ...); a line that is
    half written or was changed since is dropped, and its entry estimated again.

    Args:
        path: the file, or None to keep nothing.
        settings: everything that the estimates depend on.

    Attributes:
        goes_on: whether there was a file of these settings.

    Raises:
        UsageError: ``path`` is no regular file.
        WriteError: it cannot be written.
    """

    def __init__(self, path: Path | None, settings: JsonObject) -> None:
        self._path = path
        self._done: dict[Request, Estimate] = {}
        self.goes_on = False
        if path is None:
            return
        header = _header(_SCHEMA, settings)
        lines = _lines_of(path)
        older = _header(_WITHOUT_CHECKSUMS, settings).encode()
        if lines and lines[0] not in (header.encode(), older):
            path.rename(_free_name(path))
            lines = []
        self.goes_on = bool(lines)
        for line in lines[1:]:
            known = _read_line(line, needs_check=lines[0] != older)
            if known is not None:
                self._done[known[0]] = known[1]
        # The file stays as it is until the new one is whole: a full disk costs no estimate.
        write_text(path, "".join([header + "\n", *(_line(*each) for each in self._done.items())]))

    def get(self, request: Request) -> Estimate | None:
        """Return a finished estimate, or None."""
        return self._done.get(request)

    def add(self, request: Request, estimate: Estimate) -> None:
        """Keep a finished estimate; it is on disk when this returns."""
        self._done[request] = estimate
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(_line(request, estimate))
            except OSError as error:
                raise WriteError(
                    f"{self._path}: cannot be written ({error.strerror}); make room there, and run the "
                    "same command again: what was written before goes on"
                ) from error

    @property
    def seconds(self) -> float:
        """Seconds that all the estimates took."""
        return sum(estimate.seconds for estimate in self._done.values())


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.chain([0], itertools.count(2)))
    return next(each for each in names if not each.exists())


def _header(schema: int, settings: JsonObject) -> str:
    return json.dumps({"schema": schema, **settings}, sort_keys=True)


def _lines_of(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    remedy = "move it away, or name another output"
    return read_bytes(path, most_bytes=_MOST_BYTES, remedy=remedy).splitlines()


def _line(request: Request, estimate: Estimate) -> str:
    # Floats, as they are read back: an integer would have another text, and so another hash.
    scores = {name: float(value) for name, value in estimate.scores.items()}
    content = {"entry": request.to_json(), "scores": scores, "seconds": float(estimate.seconds)}
    return json.dumps({**content, "check": _check(content)}) + "\n"


def _check(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read_line(line: bytes, *, needs_check: bool) -> tuple[Request, Estimate] | None:
    """Return an estimate, or None where the line is not as it was written."""
    try:
        found = parse_json(line, _Line, source="line")
    except UsageError:
        return None
    content = {"entry": found.entry.to_json(), "scores": found.scores, "seconds": found.seconds}
    if (needs_check or found.check is not None) and found.check != _check(content):
        return None
    return found.entry, Estimate(found.scores, found.seconds)


def cheap_journal(path: Path | None) -> Path | None:
    """Return where the cheap estimates of an adaptive run are kept, beside the expensive ones."""
    return None if path is None else path.with_name(f"{path.name}.cheap")


def weights_beside(path: Path) -> Path:
    """Return where weights that entries share are kept, beside the journal of these."""
    return path.with_name(f"{path.name}.weights")


def checkpoint_beside(path: Path) -> Path:
    """Return where their training is kept while it lasts."""
    return path.with_name(f"{path.name}.training")


def belongs_to(path: Path, **settings: Any) -> bool:
    """Say whether a journal is there and was begun with these settings, among others."""
    try:
        header = json.loads(_lines_of(path)[0])
    except (UsageError, ValueError, IndexError):
        return False
    return isinstance(header, dict) and all(header.get(name) == value for name, value in settings.items())


def wrote_table(path: Path, table: Path) -> bool:
    """Say whether a journal's run wrote this table, and was stopped before it had removed the journal."""
    try:
        made = ImportanceTable.read(table).provenance
    except LayerfoldError:
        return False
    names = ("score", "fill_slots", "calibration_images", "holdout_images", "seed")
    options = {name: made.options.get(name) for name in names}
    return belongs_to(
        path, network=made.network_hash, weights=made.model_hash, data=made.options.get("data_fingerprint"), **options
    )


def remove_journal(path: str | Path) -> None:
    """Remove what ``estimate_importance`` kept for resuming: its table is written."""
    for journal in (Path(path), Path(f"{path}.cheap")):
        for each in (journal, weights_beside(journal), checkpoint_beside(journal)):
            each.unlink(missing_ok=True)
