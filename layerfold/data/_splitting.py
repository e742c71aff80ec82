"""Which rows go to train, holdout and test, by a fixed seed and with every class in proportion. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import UsageError

DEFAULT_HOLDOUT = 0.1
MOST_HOLDOUT = 2000

Rows = NDArray[np.int64]


def holdout_size(holdout: float | None, available: int) -> int:
    """Return how many of ``available`` images become the holdout.

    Args:
        holdout: a share (above 0, below 1) or a count (1 or more); None for 10 %, at most 2,000.
        available: images to take them from.

    Raises:
        UsageError: not above 0, or nothing would be left.
    """
    if holdout is None:
        return max(1, min(MOST_HOLDOUT, round(available * DEFAULT_HOLDOUT)))
    if not holdout > 0 or (holdout >= 1 and holdout != int(holdout)):
        raise UsageError(f"holdout={holdout}: give a share above 0 and below 1, or a whole number of images")
    size = round(available * holdout) if holdout < 1 else int(holdout)
    if not 0 < size < available:
        raise UsageError(f"holdout={holdout}: takes {size} of {available} images; some must be left on both sides")
    return size


def stratified_parts(labels: Rows, sizes: Sequence[int], seed: int) -> list[Rows]:
    """Draw disjoint parts of the given sizes from rows 0..n-1; what is left over is the last part.

    Within each part every class has its share, to within one image.

    Args:
        labels: class of each row.
        sizes: images of each part but the last.
        seed: of the draw.

    Returns:
        ``len(sizes) + 1`` sorted arrays of rows, which together hold every row once.
    """
    generator = np.random.default_rng(seed)
    left = np.arange(len(labels), dtype=np.int64)
    parts = []
    for size in sizes:
        chosen = _stratified_draw(labels[left], size, generator)
        parts.append(left[chosen])
        left = left[~chosen]
    return [*parts, left]


def _stratified_draw(labels: Rows, size: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Mark ``size`` rows: per class the rounded-down share, the rest by largest remainder, ties by lot."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * (size / len(labels))
    quotas = np.floor(shares).astype(np.int64)
    tie_break = generator.permutation(len(classes))
    order = np.lexsort((tie_break, -(shares - quotas)))
    quotas[order[: size - int(quotas.sum())]] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for value, quota in zip(classes, quotas, strict=True):
        rows = np.flatnonzero(labels == value)
        chosen[generator.permutation(rows)[:quota]] = True
    return chosen
