"""The epochs of a run as they end: a CSV file, and TensorBoard's."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from layerfold.errors import OptionalDependencyError
from layerfold.files import write_text
from layerfold.finetune._report import EpochRow, continued

_COLUMNS = tuple(field.name for field in fields(EpochRow))


class EpochLog:
    """Writes each epoch down.

    Args:
        path: the CSV file, or None. It is written again each time, so that a run that is stopped and resumed leaves
            each epoch once.
        tensorboard: folder for TensorBoard's files, or None.
        earlier: rows of a training that this one goes on from: they stand before its own.

    Raises:
        OptionalDependencyError: TensorBoard is not installed.
    """

    def __init__(self, path: Path | None, tensorboard: Path | None, earlier: Sequence[EpochRow] = ()) -> None:
        self._path, self._earlier = path, tuple(earlier)
        self._board: Any = None if tensorboard is None else _summary_writer(tensorboard)

    def restore(self, rows: Sequence[EpochRow]) -> None:
        """Write the rows that a run had when it was stopped; TensorBoard has them."""
        if self._path is not None:
            write_text(self._path, _as_csv(continued(self._earlier, rows)))

    def write(self, rows: Sequence[EpochRow]) -> None:
        """Write the rows of all epochs so far; the last one is new."""
        self.restore(rows)
        if self._board is not None:
            row = continued(self._earlier, rows)[-1]
            for name in _COLUMNS:
                value = getattr(row, name)
                if name not in ("epoch", "steps") and value is not None:
                    self._board.add_scalar(name, value, row.steps)
            self._board.flush()

    def close(self) -> None:
        """End TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _as_csv(rows: Sequence[EpochRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        values = [getattr(row, name) for name in _COLUMNS]
        writer.writerow(
            ["" if value is None else f"{value:.6g}" if isinstance(value, float) else value for value in values]
        )
    return text.getvalue()


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionalDependencyError(
            f"tensorboard_path={folder}: needs the package tensorboard; install it (pip install tensorboard), or do "
            "without: the CSV log holds the same numbers"
        ) from error
    return SummaryWriter(str(folder))
