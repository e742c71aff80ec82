"""What is left of a segment when some of its layers are dropped (Kim et al., *LayerMerge*, ICML 2024, section 3).

A dropped layer keeps its input's shape and becomes the identity. A residual branch of which nothing stays goes as a
whole, whatever the shapes inside it: what is left between its ends is the shortcut alone. So the identity is not added
to itself, and convs that change the shape can go where a shortcut leads around them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from layerfold.errors import SolutionError
from layerfold.graph.description import Description, Layer, Residual
from layerfold.graph.specs import ConvSpec


@dataclass(frozen=True, kw_only=True)
class Step:
    """One linear operation that stays in a segment.

    Attributes:
        conv: what it is.
        layer: its index, if it is a layer.
        shortcut: (residual's place in ``Network.residuals``, place in its shortcut), if it is of a shortcut that is all
            that is left of a residual. Neither for an identity that an addition is written after.
    """

    conv: ConvSpec
    layer: int | None = None
    shortcut: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentSteps:
    """A segment without what is dropped.

    Attributes:
        steps: in order; none for the identity.
        residuals: (src, dst, place in ``Network.residuals``) of what is added inside, in the order of dst; src and dst
            count steps.
    """

    steps: tuple[Step, ...]
    residuals: tuple[tuple[int, int, int], ...]

    @property
    def lone(self) -> Step | None:
        """The only step of a segment without additions: it stays as it is."""
        return self.steps[0] if len(self.steps) == 1 and not self.residuals else None


def keeps_shape(layer: Layer) -> bool:
    """Say whether the identity could stand in a layer's place."""
    return layer.input_shape == layer.output_shape and layer.conv.stride == (1, 1)


def segment_steps(net: Description, start: int, end: int, dropped: Collection[int] = ()) -> SegmentSteps:
    """Return what layers start+1..end come down to without ``dropped``.

    Raises:
        SolutionError: a dropped layer that changes the shape, and whose residual branch, if any, does not go with it.
    """
    inside = [
        (number, residual)
        for number, residual in enumerate(net.residuals)
        if start <= residual.src and residual.dst <= end
    ]
    gone = {src: dst for src, dst in gone_branches(net, dropped) if start <= src and dst <= end}
    steps: list[Step] = []
    residuals: list[tuple[int, int, int]] = []
    place = {start: 0}
    position = start
    while position < end:
        source, before = position, len(steps)
        ending = {number: residual.src for number, residual in inside}
        if source in gone:
            position = gone[source]
            ways = [number for number, residual in inside if (residual.src, residual.dst) == (source, position)]
            longest = max(ways, key=lambda number: len(net.residuals[number].shortcut))
            shortcut = net.residuals[longest].shortcut
            steps += [Step(conv=conv, shortcut=(longest, index)) for index, conv in enumerate(shortcut)]
            del ending[longest]
        else:
            position += 1
            layer = net.layer(position)
            if position not in dropped or layer.kind == "add":
                steps.append(Step(conv=layer.conv, layer=position))
            elif not keeps_shape(layer):
                raise _breaks_shapes(net, layer)
        added = [number for number in ending if net.residuals[number].dst == position and ending[number] in place]
        for number in added if dropped else ():
            _check_branch(net, net.residuals[number], dropped)
        if added and len(steps) == before:
            channels = net.layer(position).output_shape[0]
            steps.append(Step(conv=ConvSpec.channelwise(channels, "identity")))
        place[position] = len(steps)
        residuals += [(place[ending[number]], len(steps), number) for number in added]
    return SegmentSteps(steps=tuple(steps), residuals=tuple(residuals))


def gone_branches(net: Description, dropped: Collection[int]) -> list[tuple[int, int]]:
    """Return (src, dst) of the residuals of whose branch nothing stays; of nested ones the outermost."""
    empty = _empty_branches(net, dropped)
    whole = {
        (residual.src, residual.dst)
        for residual in net.residuals
        if (residual.src, residual.dst) in empty
        # What another residual reads or adds inside must stay.
        and not any(_cross(residual, other) for other in net.residuals)
    }
    return sorted(
        (src, dst) for src, dst in whole if not any((a, b) != (src, dst) and a <= src and dst <= b for a, b in whole)
    )


def _empty_branches(net: Description, dropped: Collection[int]) -> set[tuple[int, int]]:
    """Return (src, dst) of the residuals whose branch is dropped; a lone addition in it is nothing to keep.

    Convs in the shortcut of a residual inside it stay, so that such a branch is not empty.
    """
    if not dropped:
        return set()
    lost = set(dropped)
    kept = {layer.index for layer in net.layers if layer.kind != "add"} - lost
    branches = {(residual.src, residual.dst) for residual in net.residuals}
    return {
        (src, dst)
        for src, dst in branches
        if lost.intersection(range(src + 1, dst + 1))
        and kept.isdisjoint(range(src + 1, dst + 1))
        and not any(_is_inside(other, src, dst) and other.shortcut for other in net.residuals)
    }


def _is_inside(residual: Residual, src: int, dst: int) -> bool:
    """Say whether a residual lies inside another one's branch, and is not beside it."""
    return src <= residual.src and residual.dst <= dst and (residual.src, residual.dst) != (src, dst)


def _cross(one: Residual, other: Residual) -> bool:
    return other.src < one.src < other.dst < one.dst or one.src < other.src < one.dst < other.dst


def dropped_layers(net: Description, kept_layers: Iterable[int] | None) -> tuple[int, ...]:
    """Return the layers that are not among ``kept_layers``; none of None.

    Raises:
        SolutionError: a layer that the network does not have.
    """
    if kept_layers is None:
        return ()
    kept = set(kept_layers)
    for index in sorted(kept):
        if not 1 <= index <= len(net.layers):
            raise SolutionError(f"kept_layers holds {index}; this network has layers 1..{len(net.layers)}")
    return tuple(layer.index for layer in net.layers if layer.index not in kept)


def effective_stops(net: Description, merge_pos: Iterable[int], dropped: Collection[int]) -> set[int]:
    """Return where merging stops once branches are gone: inside one there is nothing left to stop at."""
    gone = gone_branches(net, dropped)
    return {stop for stop in merge_pos if not any(src < stop < dst for src, dst in gone)}


def _check_branch(net: Description, residual: Residual, dropped: Collection[int]) -> None:
    """Refuse an empty branch that cannot go as a whole: its source would be added to itself."""
    branch = range(residual.src + 1, residual.dst + 1)
    if (residual.src, residual.dst) not in _empty_branches(net, dropped):
        return
    others = ", ".join(f"({other.src}, {other.dst})" for other in net.residuals if _cross(residual, other))
    if others:
        raise SolutionError(
            f"kept_layers holds none of {branch[0]}..{branch[-1]}, the branch of residual ({residual.src}, "
            f"{residual.dst}), which cannot go as a whole, since it overlaps {others}; keep one of its layers"
        )


def _breaks_shapes(net: Description, layer: Layer) -> SolutionError:
    branches = [
        (residual.src, residual.dst) for residual in net.residuals if residual.src < layer.index <= residual.dst
    ]
    remedy = "keep it"
    if branches:
        src, dst = min(branches, key=lambda branch: branch[1] - branch[0])
        remedy += f", or drop its whole residual branch, layers {src + 1}..{dst}"
    shapes = " to ".join("x".join(map(str, shape)) for shape in (layer.input_shape, layer.output_shape))
    return SolutionError(f"kept_layers lacks layer {layer.index} ({layer.name}), which changes {shapes}; {remedy}")
