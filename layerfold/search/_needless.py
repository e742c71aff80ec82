"""What a choice of gates removes for nothing: activations at which merging stops all the same. They stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerfold.search._gates import Gate, activations_left
from layerfold.search._merging import BestMerging


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of gates after what frees no merge was left in place.

    Attributes:
        on: which gates are on.
        staying: positions of gates that are off whose activation stays all the same.
        act_pos: A, rising.
    """

    on: tuple[bool, ...]
    staying: frozenset[int]
    act_pos: tuple[int, ...]


def without_needless(merging: BestMerging, gates: Sequence[Gate], on: Sequence[bool]) -> Choice:
    """Return the choice with every activation kept whose removal frees no merge.

    Such a removal gains no time: the convs are the same with the activation and without it. A gate all of whose
    activations are of that kind is turned on; of others these activations alone stay. The predicted latency is that of
    ``on``, or less where an empty slot need not be filled.

    Args:
        merging: from activations to where merging stops.
        gates: every gate.
        on: which of them are to stay on.
    """
    net = merging.net
    chosen = tuple(on)
    while True:
        act_pos = activations_left(net, gates, chosen)
        stops = {end for _, end in merging.segments(act_pos)}
        needless = {p for p in stops.difference(act_pos) if net.has_activation(p)}
        following = tuple(
            is_on or needless.issuperset(gate.positions) for gate, is_on in zip(gates, chosen, strict=True)
        )
        if following == chosen:
            return Choice(on=chosen, staying=frozenset(needless), act_pos=tuple(sorted({*act_pos, *needless})))
        chosen = following
