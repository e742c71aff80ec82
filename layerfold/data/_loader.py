"""Batches of one split, in an order that the seed and the epoch decide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from layerfold.data._policies import parse_augmentation
from layerfold.data._splits import Split
from layerfold.errors import UsageError


@dataclass(frozen=True)
class Share:
    """The rows of each batch that one of several processes takes.

    With a row it takes the one as far from the batch's other end: what mixes the two needs no other process.

    Args:
        index: of the process, 0..number-1.
        number: of processes.
    """

    index: int
    number: int

    def rows(self, batch_size: int) -> list[int]:
        """Return places in a batch, 0..batch_size-1."""
        front = range(self.index, batch_size // 2, self.number)
        middle = [batch_size // 2] if batch_size % 2 and self.index == 0 else []
        return [*front, *middle, *(batch_size - 1 - place for place in reversed(front))]


class BatchLoader:
    """Iterable over (images float32 [batch, channels, height, width], labels int64 [batch]).

    Each pass over it is one epoch with an order (and augmentation) of its own; ``set_epoch`` says which.

    Args:
        split: where the images come from.
        batch_size: images per batch; the last one may be smaller.
        shuffle: whether rows come in an order drawn from the seed and the epoch.
        augment: False or ``"none"``; True or ``"crop"``: cropped and mirrored at random; or the name of one of timm's
            policies, applied after that, for example ``"rand-m9-mstd0.5-inc1"``, ``"augmix-m3-w3"``, ``"3a"``.
        random_erasing: probability that an image, once normalised, loses a rectangle to noise.
        limit: use only this many images, drawn from the seed, the same in every epoch.
        seed: of order, limit and augmentation.
        drop_last: leave out a last batch that is not full (unless it is the only one).

    Batches are made ahead of the caller, by a thread or, with a policy or erasing, by worker processes. The same
    arguments and epoch give the same batches bit for bit, from wherever in the epoch it goes on.

    Raises:
        UsageError: an argument outside its range, an unknown policy.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool | str = False,
        random_erasing: float = 0.0,
        limit: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size}: must be at least 1")
        if limit is not None and limit < 1:
            raise UsageError(f"limit={limit}: must be at least 1")
        self._split, self._batch_size, self._seed = split, batch_size, seed
        self._shuffle, self._drop_last = shuffle, drop_last
        self._augmentation = parse_augmentation(augment, random_erasing)
        split.check(self._augmentation)
        self._rows = _limited_rows(len(split), limit, seed)
        self._epoch = 0

    @property
    def num_images(self) -> int:
        """Images that one epoch draws from."""
        return len(self._rows)

    def __len__(self) -> int:
        full, rest = divmod(len(self._rows), self._batch_size)
        return full + bool(rest and (not self._drop_last or not full))

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is; later passes count on from it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.starting_at(0)

    def starting_at(self, batch: int, share: Share | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the epoch from that batch on (counted from 0): how an interrupted epoch goes on.

        With a ``share`` each batch holds only its rows, as they would be in the whole batch; one without any is left
        out.
        """
        epoch = self._epoch
        self._epoch += 1
        rows = self._rows
        if self._shuffle:
            rows = np.random.default_rng((self._seed, epoch, 0)).permutation(rows)
        seeds = np.random.default_rng((self._seed, epoch, 1)).integers(0, 2**62, size=len(self)).tolist()
        size = self._batch_size
        chosen = [rows[index * size : (index + 1) * size].tolist() for index in range(batch, len(self))]
        seeds = seeds[batch:]
        if share is None:
            return self._split.batches(chosen, seeds, self._augmentation)
        # A batch of fewer images than processes leaves some without any.
        kept = [index for index, each in enumerate(chosen) if share.rows(len(each))]
        chosen, seeds = [chosen[index] for index in kept], [seeds[index] for index in kept]
        places = [share.rows(len(each)) for each in chosen]
        if self._split.is_augmented_by_batch(self._augmentation):
            whole = self._split.batches(chosen, seeds, self._augmentation)
            return ((images[own], labels[own]) for (images, labels), own in zip(whole, places, strict=True))
        shared = [[each[place] for place in own] for each, own in zip(chosen, places, strict=True)]
        return self._split.batches(shared, seeds, self._augmentation)


def _limited_rows(available: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    if limit is None or limit >= available:
        return np.arange(available, dtype=np.int64)
    # Drawn, not the first ones: folders are sorted by class.
    return np.sort(np.random.default_rng((seed, 2)).permutation(available)[:limit]).astype(np.int64)
