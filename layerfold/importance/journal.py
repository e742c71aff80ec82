"""Finished estimates, written one by one, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layerfold.importance.requests import Request


class Journal:
    """A file of JSON lines: first what the estimates belong to, then one line an estimate.

    A file that belongs to other settings is set aside as ``<name>.old``; a half-written last line is dropped.

    Args:
        path: the file, or None to keep nothing.
        settings: everything that the estimates depend on.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self._done: dict[Request, dict[str, float]] = {}
        if path is None:
            return
        header = json.dumps(settings, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines and lines[0] != header:
            path.replace(path.with_name(f"{path.name}.old"))
            lines = []
        for line in lines[1:]:
            try:
                start, end, start_act, end_act, scores, *drop = json.loads(line)
                dropped, merged = drop or ((), "")
            except ValueError:
                break
            request = Request(start=start, end=end, start_act=start_act, end_act=end_act, dropped=tuple(dropped),
                              merged=merged)
            self._done[request] = scores
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.write(header + "\n")
            for request, scores in self._done.items():
                file.write(self._line(request, scores))

    def get(self, request: Request) -> dict[str, float] | None:
        """Return the scores of a finished estimate, or None."""
        return self._done.get(request)

    def add(self, request: Request, scores: dict[str, float]) -> None:
        """Keep a finished estimate; it is on disk when this returns."""
        self._done[request] = scores
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self._line(request, scores))

    @staticmethod
    def _line(request: Request, scores: dict[str, float]) -> str:
        drop = [request.dropped, request.merged] if request.dropped else []
        return json.dumps([request.start, request.end, request.start_act, request.end_act, scores, *drop]) + "\n"
