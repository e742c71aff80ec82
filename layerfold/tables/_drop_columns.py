"""Columns of options with dropped layers, as LayerMerge writes them, and one of ours.

``ker,str,is_dw``: the merged conv's kernel, stride, and whether it is depthwise. ``conv_comb``: the layers that stay,
as a Python tuple, ``(1, 3)``; it is parsed, never evaluated. ``merged`` is ours: the same as ``ker,str,is_dw`` and
whatever else tells merged convs apart (:mod:`layerfold.tables.kernel`); where it is there, it counts.

Source: Kim et al., *LayerMerge* (ICML 2024, arXiv 2406.12837), and its program's tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from layerfold.tables._csv import Row
from layerfold.tables.kernel import is_kernel_text, kernel_columns, kernel_of_columns, kernel_sides

DROP_COLUMNS = ("ker", "str", "is_dw", "conv_comb", "merged")
_LAYERS = r"\s*(?:\d{1,7}\s*(?:,\s*\d{1,7}\s*)*,?\s*)?"
_COMB = re.compile(rf"\({_LAYERS}\)|\[{_LAYERS}\]")
_Read = tuple[Row, str, tuple[int, ...] | None, bool]


def with_drops(rows: Sequence[Row], *, must_say: bool) -> Iterator[_Read]:
    """Yield (row, merged kernel, layers that stay, whether any are dropped) of each row, st and end checked.

    The kernel is empty where the table has none. The layers are None where every one stays, and in a latency table of
    LayerMerge, which does not say. There the largest kernel of a segment is the one that drops nothing.

    Args:
        rows: of one table.
        must_say: whether the layers that stay have to be there, if merged kernels are.

    Raises:
        TableError: a cell that is not what its column holds.
    """
    largest: dict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    found: list[tuple[Row, str]] = []
    for row in rows:
        start, end = row.position("st"), row.position("end")
        if start >= end:
            raise row.error("end", f"a position after st={start}")
        merged = _merged(row)
        found.append((row, merged))
        largest[start, end] = max(largest[start, end], _rank(merged))
    for row, merged in found:
        start, end = row.position("st"), row.position("end")
        if row.cells.get("conv_comb", "") != "" or (must_say and "conv_comb" in row.cells):
            kept = _kept(row, start, end)
            if kept is not None and not merged:
                raise row.error("ker", "the merged kernel, where layers are dropped")
            yield row, merged, kept, kept is not None
        else:
            yield row, merged, None, bool(merged) and _rank(merged) != largest[start, end]


def drop_cells(
    start: int, end: int, merged: str, kept: tuple[int, ...] | None, *, is_known: bool = True
) -> dict[str, object]:
    """Return the cells of one row; of a whole segment ``kept`` is None, and so it is where it is not ``is_known``."""
    ker, stride, is_dw = kernel_columns(merged) if merged else ("", "", "")
    everything = tuple(range(start + 1, end + 1)) if is_known else None
    stay = everything if kept is None else kept
    return {
        "ker": ker,
        "str": stride,
        "is_dw": is_dw,
        "merged": merged,
        "conv_comb": "" if stay is None else repr(stay),
    }


def _merged(row: Row) -> str:
    text = row.text("merged")
    if text:
        if not is_kernel_text(text):
            raise row.error("merged", "a merged kernel such as 3x3, '5x5 dw' or identity")
        return text
    cells = [row.cells.get(name, "") for name in ("ker", "str", "is_dw")]
    if not any(cells):
        return ""
    kernel = kernel_of_columns(*cells)
    if kernel is None:
        others = f"str={cells[1]!r}, is_dw={cells[2]!r}"
        raise row.error("ker", f"a kernel's side, with a stride and True or False beside it ({others})")
    return kernel


def _kept(row: Row, start: int, end: int) -> tuple[int, ...] | None:
    """Parse a Python tuple or list of layers; None where it holds every one."""
    text = row.cells["conv_comb"].strip()
    found = _COMB.fullmatch(text)
    if found is None:
        raise row.error("conv_comb", f"layers that stay, as ({start + 1}, {end}); () where none does")
    layers = tuple(sorted(int(part) for part in re.findall(r"\d+", text)))
    if len(set(layers)) < len(layers) or not all(start < layer <= end for layer in layers):
        raise row.error("conv_comb", f"each layer once, from {start + 1} to {end}")
    return None if len(layers) == end - start else layers


def _rank(merged: str) -> tuple[int, int]:
    """Order kernels so that the one of the whole segment comes last: the largest, and dense before depthwise."""
    height, width = kernel_sides(merged)
    return height * width, 0 if merged.endswith("dw") else 1
