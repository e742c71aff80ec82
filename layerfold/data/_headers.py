"""A look at the header of every image, so that a broken one is named before any work. No torch."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from layerfold.data._decoded import StoredImages, unreadable
from layerfold.data._encoded import has_frames
from layerfold.data._threads import num_workers
from layerfold.errors import DataError
from layerfold.progress import progress_bar

_TOGETHER = 64
MANY = 5000
"""Images that are worth a bar, and to remember that they were looked at: it takes about a second."""


@dataclass
class _Seen:
    broken: DataError | None = None
    num_broken: int = 0
    num_with_frames: int = 0


def check_headers(images: StoredImages, what: str, check: Callable[[Any], None], *, progress: bool = True) -> int:
    """Open every image without decoding it, several at once.

    Args:
        images: of a source.
        what: they are called, beside the bar.
        check: raises where the header of an opened image shows that it cannot be used.
        progress: whether a bar may be shown, where they are many.

    Returns:
        How many have several frames, of which the first is taken.

    Raises:
        DataError: images that cannot be read; names the first, and says how many there are.
    """
    if not images.is_encoded:
        return 0
    count = len(images.labels)
    starts = range(0, count, _TOGETHER)

    def look(start: int) -> _Seen:
        seen = _Seen()
        for row in range(start, min(start + _TOGETHER, count)):
            try:
                with images.open(row) as image:
                    check(image)
                    seen.num_with_frames += has_frames(image)
            except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
                seen.broken = seen.broken or unreadable(images, row, error)
                seen.num_broken += 1
        return seen

    found: list[_Seen] = []
    with (
        progress_bar(f"images: {what}", count, enabled=progress and count >= MANY) as bar,
        ThreadPoolExecutor(max_workers=num_workers()) as pool,
    ):
        for seen, start in zip(pool.map(look, starts), starts, strict=True):
            found.append(seen)
            bar.advance(min(_TOGETHER, count - start))
    broken = next((seen.broken for seen in found if seen.broken is not None), None)
    if broken is not None:
        others = sum(seen.num_broken for seen in found) - 1
        raise DataError(f"{broken}; and {others} more like it" if others else str(broken))
    return sum(seen.num_with_frames for seen in found)
