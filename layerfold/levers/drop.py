"""Dropping: layers of a segment are left out, and become the identity or the shortcut of a residual.

What is left is :mod:`layerfold.graph.dropping`; a solution says it with ``kept_layers``. In tables a change stands as
LayerMerge writes it, with one column of ours. ``ker,str,is_dw``: the merged conv's kernel, stride, and whether it is
depthwise. ``conv_comb``: the layers that stay, as a Python tuple, ``(1, 3)``; it is parsed, never evaluated.
``merged`` is ours: the same as ``ker,str,is_dw`` and whatever else tells merged convs apart
(:mod:`layerfold.tables.kernel`); where it is there, it counts.

Source: Kim et al., *LayerMerge* (ICML 2024, arXiv 2406.12837), and its program's tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from layerfold.errors import UsageError
from layerfold.graph.candidates import CandidateRules
from layerfold.graph.description import Segment
from layerfold.graph.drop_options import list_drop_options
from layerfold.graph.network import Network
from layerfold.tables import ImportanceEntry, LatencyEntry
from layerfold.tables.kernel import kernel_columns, kernel_sides
from layerfold.tables.levers import DROP, Change, Lever, Row

_LAYERS = r"\s*(?:\d{1,7}\s*(?:,\s*\d{1,7}\s*)*,?\s*)?"
_COMB = re.compile(rf"\({_LAYERS}\)|\[{_LAYERS}\]")


class Drop(Lever):
    """Of every set of layers that merge into the same kernel, the one that keeps the greatest norm."""

    name = DROP
    columns = ("ker", "str", "is_dw", "conv_comb", "merged")

    def options(self, net: Network, rules: CandidateRules) -> list[Segment]:
        if rules.layer_norms is None:
            raise UsageError("levers: drop needs layer_norms; give layer_norms=layerfold.layer_norms(model, net)")
        return list_drop_options(net, rules, rules.layer_norms)

    def cells(self, entry: LatencyEntry | ImportanceEntry) -> Mapping[str, object]:
        ker, stride, is_dw = kernel_columns(entry.merged) if entry.merged else ("", "", "")
        change = entry.change if entry.change is not None and entry.change.lever == DROP else Change(DROP, ())
        stay = None if change.layers is None else _others(entry.start, entry.end, change.layers)
        comb = "" if stay is None else repr(stay)
        return {"ker": ker, "str": stride, "is_dw": is_dw, "merged": entry.merged, "conv_comb": comb}

    def changes_in(self, rows: Sequence[Row], kernels: Sequence[str], *, must_say: bool) -> list[Change | None]:
        """Return the layers dropped in each row; they are unknown (None) in a latency table of LayerMerge.

        There the largest kernel of a segment is the one that drops nothing.
        """
        largest: dict[tuple[int, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
        segments = [(row.position("st"), row.position("end")) for row in rows]
        for segment, kernel in zip(segments, kernels, strict=True):
            largest[segment] = max(largest[segment], _rank(kernel))
        found: list[Change | None] = []
        for row, segment, kernel in zip(rows, segments, kernels, strict=True):
            if row.cells.get("variant"):
                found.append(None)
            elif row.cells.get("conv_comb", "") != "" or (must_say and "conv_comb" in row.cells):
                lost = _lost(row, *segment)
                if lost and not kernel:
                    raise row.error("ker", "the merged kernel, where layers are dropped")
                found.append(Change(DROP, lost) if lost else None)
            else:
                found.append(Change(DROP, None) if kernel and _rank(kernel) != largest[segment] else None)
        return found

    def phrase(self, change: Change) -> str:
        return f"without {','.join(map(str, change.layers or ()))}"


def _others(start: int, end: int, layers: Sequence[int]) -> tuple[int, ...]:
    return tuple(index for index in range(start + 1, end + 1) if index not in layers)


def _lost(row: Row, start: int, end: int) -> tuple[int, ...]:
    """Parse a Python tuple or list of the layers that stay; return the others."""
    text = row.cells["conv_comb"].strip()
    found = _COMB.fullmatch(text)
    if found is None:
        raise row.error("conv_comb", f"layers that stay, as ({start + 1}, {end}); () where none does")
    layers = tuple(sorted(int(part) for part in re.findall(r"\d+", text)))
    if len(set(layers)) < len(layers) or not all(start < layer <= end for layer in layers):
        raise row.error("conv_comb", f"each layer once, from {start + 1} to {end}")
    return _others(start, end, layers)


def _rank(merged: str) -> tuple[int, int]:
    """Order kernels so that the one of the whole segment comes last: the largest, and dense before depthwise."""
    height, width = kernel_sides(merged)
    return height * width, 0 if merged.endswith("dw") else 1
