"""The output folder of one run: which steps are done, what they gave, and whose folder it is."""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerfold.errors import UsageError

SCHEMA = 1
_MANIFEST = "run.json"


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
    result: dict[str, Any]


class RunFolder:
    """Remembers finished steps in ``run.json``, so that the same run started again goes on where it stopped.

    Args:
        path: the folder; made if it is not there.
        config: everything that decides the outcome, as plain JSON.
        overwrite: start anew where the folder holds another run; only files that runs write are removed.

    Raises:
        UsageError: the folder holds another run, or files that no run wrote.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._manifest_path = self.path / _MANIFEST
        self.config = json.loads(json.dumps(dict(config)))
        self.records: list[StepRecord] = []
        self._steps: dict[str, dict[str, Any]] = {}
        self._scratch: list[str] = []
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--output {self.path}: is a file; name a folder")
        if self._manifest_path.exists():
            self._take_up(overwrite)
        elif self.path.is_dir() and any(not (item / _MANIFEST).exists() for item in self.path.iterdir()):
            raise UsageError(f"--output {self.path}: the folder holds files that no run wrote; name a new or empty one")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write()
        except OSError as error:
            raise UsageError(
                f"--output {self.path}: cannot be written ({error.strerror}); name another folder"
            ) from None

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    def write_json(self, name: str, value: Any) -> None:
        """Write plain JSON into a file of the folder, by an atomic replace."""
        partial = self.file(f"{name}.part")
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.file(name))

    def step(
        self,
        name: str,
        outputs: Sequence[str],
        work: Callable[[], dict[str, Any] | None],
        *,
        scratch: Sequence[str] = (),
    ) -> StepRecord:
        """Do a step, unless an earlier run did it and all its files are still there.

        Args:
            name: of the step.
            outputs: files in the folder that it writes.
            work: does it, and returns what to remember as plain JSON.
            scratch: files by which an interrupted step goes on; they go when an earlier step is done again.
        """
        known = self._steps.get(name)
        if known is not None and all(self.file(output).exists() for output in outputs):
            record = StepRecord(name=name, seconds=known["seconds"], is_resumed=True, result=known["result"])
        else:
            if known is not None:
                self.forget(name)
            self._scratch += [file for file in scratch if file not in self._scratch]
            self._write()
            began = time.monotonic()
            result = json.loads(json.dumps(work() or {}))
            seconds = time.monotonic() - began
            self._steps[name] = {
                "seconds": round(seconds, 2),
                "outputs": list(outputs),
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "result": result,
            }
            self._write()
            record = StepRecord(name=name, seconds=seconds, is_resumed=False, result=result)
        self.records.append(record)
        return record

    def forget(self, name: str) -> None:
        """Forget a step and all that was made from it, on disk before anything new is written."""
        names = list(self._steps)
        stale = [self._steps.pop(each) for each in names[names.index(name) :]]
        scratch, self._scratch = self._scratch, []
        self._write()
        self._remove(stale, scratch)

    def _remove(self, steps: Iterable[Mapping[str, Any]], scratch: Iterable[str]) -> None:
        for output in [*(each for step in steps for each in step.get("outputs", ())), *scratch]:
            (self.path / Path(output).name).unlink(missing_ok=True)

    def _take_up(self, overwrite: bool) -> None:
        try:
            manifest = json.loads(self._manifest_path.read_text(encoding="utf-8"))
            known, steps = manifest["config"], manifest["steps"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{self._manifest_path}: is no manifest of a run; name another folder") from None
        if known == self.config:
            self._steps, self._scratch = steps, manifest.get("scratch", [])
            return
        if not overwrite:
            raise UsageError(
                f"--output {self.path}: holds another run ({_difference(known, self.config)}); "
                "name another folder, or start anew in this one with --overwrite"
            )
        self._remove(steps.values(), manifest.get("scratch", []))

    def _write(self) -> None:
        manifest = {"schema": SCHEMA, "config": self.config, "steps": self._steps, "scratch": self._scratch}
        self.write_json(_MANIFEST, manifest)


def _difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for name in {**wanted, **known}:
        if known.get(name) != wanted.get(name):
            return f"{name} was {known.get(name)!r}, now {wanted.get(name)!r}"
    return "the settings differ"
