"""The output folder of one run: which steps are done, what they gave, and whose folder it is."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from layerfold.errors import UsageError, WriteError
from layerfold.files import Count, JsonObject, JsonValue, as_json, file_sha256, held, read_json, write_json

SCHEMA = 1
_MANIFEST = "run.json"
_LOCK = "run.lock"
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_Seconds = Annotated[float, Ge(0), Le(1e12)]


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """A finished step.

    Attributes:
        name: of the step.
        seconds: wall time it took, interrupted runs before it not counted.
        is_resumed: whether an earlier run had done it.
        result: what it gave, as plain JSON.
    """

    name: str
    seconds: float
    is_resumed: bool
    result: JsonObject


@dataclass(frozen=True, kw_only=True)
class _FileFacts:
    """State of a file when its step ended."""

    sha256: str
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A finished step in ``run.json``.

    Attributes:
        outputs: the files that it wrote.
        reads: the files that it was made from; None in a file of an older version: all that came before.
        files: hash and size of each output; None in a file of an older version.
        check: hash of all else that stands here; None in a file of an older version.
    """

    seconds: _Seconds
    outputs: list[str]
    result: JsonObject
    date: str = ""
    reads: list[str] | None = None
    files: dict[str, _FileFacts] | None = None
    check: str | None = None

    def to_json(self) -> JsonObject:
        return {**asdict(self), "check": self.checksum()}

    def checksum(self) -> str:
        content = {**asdict(self), "check": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """Content of ``run.json``."""

    config: JsonObject
    steps: dict[str, _Step]
    schema: Literal[1] = 1
    scratch: list[str] = field(default_factory=list)


class RunFolder:
    """Remembers finished steps in ``run.json``, so that the same run started again goes on where it stopped.

    Of each output the file's hash is kept: what is missing or was changed since is made again, with all that depends
    on it, and a line on stderr says so.

    Args:
        path: the folder; made if it is not there.
        config: everything that decides the outcome, as plain JSON.
        overwrite: start again where the folder holds another run; only files that runs write are removed.
        known_files: further files that runs write without a step, which go with those of the steps.
        first_uses: setting -> the first step that depends on it. Until that step is done the setting may change: a run
            that ended with a budget which nothing meets goes on with another. The others may change until any step is
            done.
        complete: adds to the settings of a ``run.json`` that an older version wrote what that one left out.

    Raises:
        UsageError: the folder holds another run, or files that no run wrote.
        WriteError: ``run.json`` cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, JsonValue],
        *,
        overwrite: bool = False,
        known_files: Sequence[str] = (),
        first_uses: Mapping[str, str] | None = None,
        complete: Callable[[JsonObject], JsonObject] | None = None,
    ) -> None:
        self.path = Path(path)
        self._manifest_path = self.path / _MANIFEST
        self.config = as_json(config)
        self.records: list[StepRecord] = []
        self._steps: dict[str, _Step] = {}
        self._scratch: list[str] = []
        self._known_files, self._first_uses, self._complete = tuple(known_files), dict(first_uses or {}), complete
        _check_is_folder(self.path)
        if self._manifest_path.exists():
            self._take_up(overwrite)
        elif self.path.is_dir() and any(_is_foreign(item) for item in self.path.iterdir()):
            raise UsageError(
                f"--output {self.path}: the folder holds files that no run wrote, or its "
                f"{_MANIFEST} is gone; name a new or empty one"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--output {self.path}: cannot be written ({error.strerror}); name another folder"
            ) from None
        self._write()

    @staticmethod
    @contextlib.contextmanager
    def only_one(path: str | Path) -> Iterator[None]:
        """Keep every other run out of a folder while this one is at work; an empty folder is removed at the end.

        Raises:
            UsageError: another run is at work there, with its process; or a place that may not be written.
            WriteError: the disk is full.
        """
        if not str(path):
            raise UsageError("--output '': names no folder; give one, it is made where there is none")
        folder = Path(path)
        _check_is_folder(folder)
        lock = held(folder / _LOCK, subject=f"--output {folder}", remedy="wait for it, stop it, or name another folder")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except WriteError as error:
                cause = error.__cause__
                if isinstance(cause, OSError) and cause.errno in _NOT_ALLOWED:
                    raise UsageError(
                        f"--output {folder}: cannot be written ({cause.strerror}); name another folder"
                    ) from None
                raise
            stack.callback(_remove_if_empty, folder)
            yield

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, value: JsonValue) -> None:
        """Write plain JSON into a file of the folder, all of it or nothing."""
        write_json(self.file(name), value)

    def step(
        self,
        name: str,
        outputs: Sequence[str],
        work: Callable[[], JsonObject | None],
        *,
        reads: Sequence[str] | None = None,
        perhaps: Sequence[str] = (),
        scratch: Sequence[str] = (),
        is_repeatable: bool = False,
    ) -> StepRecord:
        """Do a step, unless an earlier run did it and all its files are still there as they were.

        Args:
            name: of the step.
            outputs: files in the folder that it writes.
            work: does it, and returns what to remember as plain JSON.
            reads: outputs of earlier steps that it is made from; None for all of them.
            perhaps: files that it writes on some machines only; they are outputs where they are there.
            scratch: files by which an interrupted step goes on; they go when a step that it depends on is done again.
            is_repeatable: whether it gives the same again to the byte: then what depends on it stays where it does.

        Raises:
            WriteError: an output is gone when the step ends, as when the folder was removed meanwhile.
        """
        known = self._steps.get(name)
        cause = None if known is None else self._cause_to_do_again(known, outputs)
        if known is not None and cause is None:
            if known.files is None or known.check is None:  # of an older version: from now on with hashes
                there = [each for each in perhaps if self.file(each).is_file() and each not in known.outputs]
                self._remember(name, known.seconds, [*known.outputs, *there], reads, known.result, known.date)
            record = StepRecord(name=name, seconds=known.seconds, is_resumed=True, result=known.result)
        else:
            if cause is not None:
                print(f"layerfold: note: {self.path}: {cause}: step {name!r} is done again", file=sys.stderr)
                if not is_repeatable:
                    self.forget(name)
            if new := [file for file in scratch if file not in self._scratch]:
                self._scratch += new
                self._write()
            began = time.monotonic()
            result = as_json(work() or {})
            seconds = time.monotonic() - began
            there = [each for each in perhaps if self.file(each).is_file() and each not in outputs]
            files = self._facts([*outputs, *there])
            if known is not None and is_repeatable and files != known.files:
                self.forget(name, keep_files=files)
            self._remember(name, round(seconds, 2), [*outputs, *there], reads, result, files=files)
            record = StepRecord(name=name, seconds=seconds, is_resumed=False, result=result)
        self.records.append(record)
        return record

    def forget(self, name: str, *, keep_files: Iterable[str] = ()) -> None:
        """Forget a step and all that was made from it, on disk before anything new is written."""
        names = list(self._steps)
        first = self._steps.pop(name)
        stale, changed = [first], {*first.outputs}
        for each in names[names.index(name) + 1 :]:
            reads = self._steps[each].reads
            if reads is None or changed & {*reads}:
                stale.append(self._steps.pop(each))
                changed |= {*stale[-1].outputs}
        scratch, self._scratch = self._scratch, []
        self._write()
        self._remove([each for step in stale for each in step.outputs if each not in {*keep_files}] + scratch)

    def check_whole(self) -> None:
        """Refuse to call a run done whose files are not there, and forget steps that are none of it.

        Raises:
            WriteError: names the file.
        """
        strange = set(self._steps) - {record.name for record in self.records}
        for name in sorted(strange):
            del self._steps[name]
            print(
                f"layerfold: note: {self._manifest_path}: {name!r} is no step of this run; forgotten", file=sys.stderr
            )
        if strange:
            self._write()
        for step in self._steps.values():
            for output in step.outputs:
                if not self.file(output).exists():
                    raise self._gone(output)
        self._check_manifest()

    def _remember(
        self,
        name: str,
        seconds: float,
        outputs: list[str],
        reads: Sequence[str] | None,
        result: JsonObject,
        date: str = "",
        *,
        files: dict[str, _FileFacts] | None = None,
    ) -> None:
        step = _Step(
            seconds=seconds,
            outputs=outputs,
            reads=None if reads is None else list(reads),
            result=result,
            date=date or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files=self._facts(outputs) if files is None else files,
        )
        self._steps[name] = replace(step, check=step.checksum())
        self._write()

    def _facts(self, outputs: Iterable[str]) -> dict[str, _FileFacts]:
        found = {}
        for output in outputs:
            facts = _facts_of(self.file(output))
            if facts is None:
                raise self._gone(output)
            found[output] = facts
        return found

    def _cause_to_do_again(self, known: _Step, outputs: Sequence[str]) -> str | None:
        """Return what is wrong with the files of a finished step, or None."""
        if known.check is not None and known.check != known.checksum():
            return f"what {_MANIFEST} says of it was changed since it was written"
        for output in {**dict.fromkeys(outputs), **dict.fromkeys(known.outputs)}:
            if not self.file(output).exists():
                return f"{output} is missing"
            expected = None if known.files is None else known.files.get(output)
            if expected is not None and _facts_of(self.file(output)) != expected:
                return f"{output} was changed since it was written"
        return None

    def _gone(self, output: str) -> WriteError:
        return WriteError(
            f"--output {self.path}: {output} is gone; was the folder removed or emptied while the run was at work? "
            "Remove what is left of it and run the same command again"
        )

    def _remove(self, outputs: Iterable[str]) -> None:
        for output in outputs:
            path = self.path / Path(output).name
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise WriteError(f"{path}: cannot be removed ({error.strerror}); move it away") from None

    def _take_up(self, overwrite: bool) -> None:
        remedy = "name another folder, or start again in this one with --overwrite"
        try:
            manifest = read_json(self._manifest_path, _Manifest, remedy=remedy)
            for name in [*manifest.scratch, *(each for step in manifest.steps.values() for each in step.outputs)]:
                if Path(name).name != name or name in ("", ".", ".."):
                    raise UsageError(f"{self._manifest_path}: {name[:60]!r} is no file of the folder; {remedy}")
        except UsageError:
            if not overwrite:
                raise
            manifest = _Manifest(config={}, steps={})
        stored = manifest.config if self._complete is None else self._complete(manifest.config)
        fixed = [name for name in {**self.config, **stored} if not self._may_change(name, manifest.steps)]
        differing = _difference(stored, self.config, fixed)
        if differing is None:
            self._steps, self._scratch = dict(manifest.steps), list(manifest.scratch)
            return
        if not overwrite:
            raise UsageError(f"--output {self.path}: holds another run ({differing}); {remedy}")
        self._remove([each for step in manifest.steps.values() for each in step.outputs])
        self._remove([*manifest.scratch, *self._known_files])

    def _may_change(self, setting: str, done: Mapping[str, _Step]) -> bool:
        """Say whether nothing that was done depends on a setting."""
        first = self._first_uses.get(setting)
        return not done if first is None else first not in done

    def _check_manifest(self) -> None:
        if not self._manifest_path.exists():
            raise self._gone(_MANIFEST)

    def _write(self) -> None:
        if self.records:
            self._check_manifest()
        steps = {name: step.to_json() for name, step in self._steps.items()}
        self.write_json(_MANIFEST, {"schema": SCHEMA, "config": self.config, "steps": steps, "scratch": self._scratch})


def _remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing but the lock was made."""
    with contextlib.suppress(OSError):
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _check_is_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path}: is a file; name a folder")


def _is_foreign(item: Path) -> bool:
    """Say whether no run wrote it: it is neither a lock nor the folder of a run, as the demo's baseline is."""
    return item.name != _LOCK and not (item / _MANIFEST).exists()


def _facts_of(path: Path) -> _FileFacts | None:
    """Return hash and size of a file; None for what is not there or no file."""
    try:
        status = path.stat()
        return _FileFacts(sha256=file_sha256(path), bytes=status.st_size) if stat.S_ISREG(status.st_mode) else None
    except OSError:
        return None


def _difference(known: Mapping[str, JsonValue], wanted: Mapping[str, JsonValue], names: Iterable[str]) -> str | None:
    """Return the first difference in these settings, or None."""
    for name in names:
        if known.get(name) != wanted.get(name):
            return f"{name} was {_short(known.get(name))}, now {_short(wanted.get(name))}"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
