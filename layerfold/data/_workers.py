"""Batches made by worker processes, for what draws from the global generators of random numbers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerfold.data._threads import num_workers
from layerfold.errors import LayerfoldError

Batch = tuple[Tensor, Tensor]


def worker_batches(makes: Sequence[Callable[[], Batch]]) -> Iterator[Batch]:
    """Yield what each of ``makes`` returns, in order; they are called in worker processes, ahead of the caller.

    The workers end with the iterator: at its end, or when it is closed or dropped half way.
    """
    # Only a process that may have children can have workers; else the caller waits for each batch.
    workers = 0 if multiprocessing.current_process().daemon else min(num_workers(), len(makes))
    loader: DataLoader[Any] = DataLoader(
        _Made(makes),
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        collate_fn=_as_it_is,
        # Its own generator: a DataLoader would otherwise draw from torch's global one, and change the caller's numbers.
        generator=torch.Generator().manual_seed(0),
    )
    batches, failed = iter(loader), None
    for batch in batches:
        if isinstance(batch, LayerfoldError):
            failed = batch
            break
        yield batch
    # Not in a traceback's hands: the workers of an iterator that waits for the garbage collector end 10 s late.
    del batches
    if failed is not None:
        raise failed


class _Made(Dataset[Any]):
    """A Dataset of whole batches. An error is the item, so that it leaves a worker process without a traceback."""

    def __init__(self, makes: Sequence[Callable[[], Batch]]) -> None:
        self._makes = makes

    def __len__(self) -> int:
        return len(self._makes)

    def __getitem__(self, index: int) -> Batch | LayerfoldError:
        try:
            return self._makes[index]()
        except LayerfoldError as error:
            return error


def _as_it_is(item: Any) -> Any:
    return item
