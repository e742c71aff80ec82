"""Which entries an importance table needs (Kim et al. 2023, section 4 and appendix B)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from layerfold.graph import Network, Segment
from layerfold.tables.importance import ImportanceEntry, Key
from layerfold.tables.levers import DROP, Change


@dataclass(frozen=True, kw_only=True, order=True)
class Request:
    """One entry to fill: a segment and the activation states at its two ends.

    Attributes:
        start, end: positions.
        start_act, end_act: 1 if the slot there holds an activation.
        dropped: layers of it that are left out, rising.
        merged: where a lever changes layers, the kernel that they merge into; else empty.
        variant, layers: the word of a lever but ``drop``, and the layers that it changes, rising; else empty.
    """

    start: int
    end: int
    start_act: int
    end_act: int
    dropped: tuple[int, ...] = ()
    merged: str = ""
    variant: str = ""
    layers: tuple[int, ...] = ()

    @property
    def change(self) -> Change | None:
        """What a lever changes of its layers, dropped ones included; None for nothing."""
        if self.variant:
            return Change(self.variant, self.layers)
        return Change(DROP, self.dropped) if self.dropped else None

    @property
    def key(self) -> Key:
        """Key of the entry in importance tables."""
        states = self.start, self.end, self.start_act, self.end_act
        return states if self.change is None else (*states, self.merged)

    def to_json(self) -> dict[str, Any]:
        """Return its fields; those that only some levers have where they are not empty."""
        found = asdict(self)
        return found if self.variant else {name: found[name] for name in found if name not in ("variant", "layers")}

    def entry(self, importance: float, **scores: Any) -> ImportanceEntry:
        """Return the row of the table that answers the request; ``scores`` are further fields of it."""
        return ImportanceEntry(
            start=self.start,
            end=self.end,
            start_act=self.start_act,
            end_act=self.end_act,
            importance=importance,
            merged=self.merged,
            change=self.change,
            **scores,
        )

    def changes_nothing(self, net: Network) -> bool:
        """Say whether the entry describes the original network: its importance is 0 without measuring."""
        return (
            self.end - self.start == 1
            and self.change is None
            and self.start_act == _original_state(net, self.start, self.end)
            and self.end_act == int(net.has_activation(self.end))
            and not any(r.src == self.start and r.dst == self.end for r in net.residuals)
        )

    def act_pos(self, net: Network) -> tuple[int, ...]:
        """Return the activations of the network that this entry stands for: the original's, but for the segment."""
        kept = {position for position in net.original_act_pos if not self.start < position < self.end}
        for position, state in ((self.start, self.start_act), (self.end, self.end_act)):
            kept = kept | {position} if state else kept - {position}
        return tuple(sorted(kept - {0}))

    def merge_pos(self, net: Network) -> tuple[int, ...]:
        """Return its merge positions: every one, but those inside the segment."""
        return tuple(p for p in range(1, len(net.layers) + 1) if not self.start < p < self.end)


NOTHING = Request(start=0, end=0, start_act=1, end_act=1)
"""No segment: the network that it stands for is the original."""

TOGETHER = Request(start=0, end=0, start_act=0, end_act=0)
"""No network of its own: what was done once for all entries."""


def entries_hash(requests: Iterable[Request]) -> str:
    """Return a hash of entries, in their order."""
    return hashlib.sha256(json.dumps([each.to_json() for each in requests]).encode()).hexdigest()[:16]


def list_requests(net: Network, segments: Iterable[Segment], *, fill_slots: bool) -> list[Request]:
    """Return the entries for these segments, by start.

    A position that is activated in the original appears with its activation only (removing it alone frees
    nothing); an empty slot appears empty and, with ``fill_slots``, filled. A chain's start counts as activated; a
    chain's end keeps its original state. With every candidate of MobileNetV2 but the single layers this gives the
    315 entries of the paper.
    """
    found = []
    for segment in segments:
        chain = net.chain_of(segment.end)
        can_fill = fill_slots and chain.activation is not None
        starts = (1,) if segment.start == chain.start else _states(net, segment.start, can_fill)
        ends = (
            (int(net.has_activation(segment.end)),) if segment.end == chain.end else _states(net, segment.end, can_fill)
        )
        found += [
            Request(
                start=segment.start,
                end=segment.end,
                start_act=a,
                end_act=b,
                dropped=segment.dropped,
                merged=segment.merged if segment.change is not None else "",
                variant="" if segment.variant is None else segment.variant.word,
                layers=() if segment.variant is None else segment.variant.layers or (),
            )
            for a in starts
            for b in ends
        ]
    return sorted(found)


def _states(net: Network, position: int, can_fill: bool) -> tuple[int, ...]:
    if net.has_activation(position):
        return (1,)
    return (0, 1) if can_fill else (0,)


def _original_state(net: Network, start: int, end: int) -> int:
    return 1 if start == net.chain_of(end).start else int(net.has_activation(start))
