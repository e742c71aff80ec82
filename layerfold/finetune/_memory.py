"""Running out of memory, said with what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from layerfold.errors import FinetuneError

_WORDS = ("can't allocate memory", "not enough memory", "cannot allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error tells of an allocation that failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


@contextmanager
def memory_errors_named(batch_size: int, num_processes: int = 1) -> Iterator[None]:
    """Turn an allocation that failed within the block into a ``FinetuneError`` that names a smaller batch."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        least = 2 * num_processes
        remedy = f"take batch_size={max(batch_size // 2, least)}" if batch_size > least else "take smaller images"
        raise FinetuneError(
            f"finetuning: out of memory with batch_size={batch_size}; {remedy}, or a device with more "
            "memory; a checkpoint holds for the same batch_size only"
        ) from error
