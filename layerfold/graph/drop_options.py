"""Which layers of a segment may go: for each merged kernel it can come down to, the best layers to keep.

The merged kernel decides the latency, so of all sets of layers that merge into the same one only the set of greatest
summed L1 norm is an option (Kim et al., *LayerMerge*, ICML 2024, section 3). They are found by dynamic programming over
positions: what is known of the layers so far is where they read, and how that was at the start of each residual that
is still open.

An option that begins or ends with a part that could be an identity by itself is left out where it is that identity
and a shorter option, one after the other: where nothing, or nothing new, is activated between the two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from layerfold.graph.candidates import CandidateRules, crosses, furthest_end, merged_segment
from layerfold.graph.description import Chain, Description, Segment
from layerfold.graph.dropping import gone_branches, keeps_shape
from layerfold.graph.footprint import Footprint
from layerfold.graph.specs import ActivationSpec, ConvSpec, Pair

_WORKING = ("conv", "pool", "slice")
"""Kinds of layers without which a branch would do nothing but scale its input."""


@dataclass(frozen=True)
class _State:
    """What matters of the layers chosen so far.

    Attributes:
        reads: where the feature map reads the segment's input.
        open: by open residual: (src, dst, what its source reads, whether a conv of its branch is kept).
        lone: the only step so far, if it is a conv that would stay as it is (its dilation is then no zeros).
        num_steps: 0, 1, or 2 for more.
    """

    reads: Footprint
    open: tuple[tuple[int, int, Footprint, bool], ...] = ()
    lone: Pair | None = None
    num_steps: int = 0


_Way = tuple[float, tuple[int, ...]]
"""(summed norm, dropped layers, rising)"""


def list_drop_options(net: Description, rules: CandidateRules, layer_norms: Mapping[int, float]) -> list[Segment]:
    """Return the options in which layers are dropped, by (start, end) and merged kernel.

    Args:
        net: the network.
        rules: its growth is that of merged multiply-adds over those of the layers that stay.
        layer_norms: layer to L1 norm; a layer without one counts as 0.
    """
    found: list[Segment] = []
    for chain in net.chains:
        for start in range(chain.start, chain.end):
            last = furthest_end(net, chain, start, rules.stop_at_strides)
            for end, ways in _ways_from(net, chain, start, last, layer_norms, rules.max_kernel):
                best = [segment for _, segment in _best_of_each_kernel(net, start, end, layer_norms, ways).values()]
                options = [each for each in best if each.dropped and _is_worthwhile(net, each, rules)]
                found += sorted(options, key=lambda each: (each.is_identity, -max(each.conv.kernel_size), each.merged))
    return found


def _best_of_each_kernel(
    net: Description, start: int, end: int, norms: Mapping[int, float], ways: list[_Way]
) -> dict[str, tuple[float, Segment]]:
    everything = sum(norms.get(index, 0.0) for index in range(start + 1, end + 1))
    best: dict[str, tuple[float, Segment]] = {}
    # Where norms are equal, as for layers without weights, the fewer are dropped the better.
    for norm, dropped in sorted([(everything, ()), *ways], key=lambda way: (-way[0], len(way[1]), way[1])):
        segment = merged_segment(net, start, end, dropped)
        best.setdefault(segment.merged, (norm, segment))
    return best


def _is_worthwhile(net: Description, segment: Segment, rules: CandidateRules) -> bool:
    if max(segment.conv.kernel_size) > rules.max_kernel or _has_free_edge(net, segment):
        return False
    if rules.max_growth is None or segment.is_identity:
        return True
    stays = sum(merged_segment(net, index - 1, index).macs for index in segment.kept)
    return segment.macs <= rules.max_growth * stays or len(segment.kept) <= 1


def _has_free_edge(net: Description, segment: Segment) -> bool:
    """Say whether an option is an identity, which is an option by itself, and a shorter option, in whichever order."""
    parts = {(src, dst) for src, dst in gone_branches(net, segment.dropped) if _leaves_nothing(net, src, dst)}
    parts |= {(index - 1, index) for index in segment.dropped}
    chain_start = net.chain_of(segment.end).start
    before = None if segment.start == chain_start else net.layer(segment.start).activation
    from_start = _reached(segment.start, parts) - {segment.start, segment.end}
    to_end = {-each for each in _reached(-segment.end, {(-dst, -src) for src, dst in parts})}
    return any(
        not _is_inside_branch(net, segment.start, stop) and _is_nothing_new(net.layer(stop).activation, before)
        for stop in from_start
    ) or any(
        not _is_inside_branch(net, stop, segment.end)
        and _is_nothing_new(net.layer(stop).activation, net.layer(segment.end).activation)
        for stop in to_end - {segment.start, segment.end}
    )


def _reached(start: int, parts: Collection[tuple[int, int]]) -> set[int]:
    """Return the positions that parts lead to, one behind the other, from ``start``."""
    found = {start}
    for src, dst in sorted(parts):
        if src in found:
            found.add(dst)
    return found


def _is_nothing_new(activation: ActivationSpec | None, other: ActivationSpec | None) -> bool:
    """Say whether an activation changes nothing with only an identity between it and another one."""
    return activation is None or (activation.is_idempotent and activation == other)


def _leaves_nothing(net: Description, src: int, dst: int) -> bool:
    """Say whether a branch that is gone leaves its input as it is."""
    ways = [residual for residual in net.residuals if (residual.src, residual.dst) == (src, dst)]
    return len(ways) == 1 and ways[0].is_identity


def _is_inside_branch(net: Description, start: int, end: int) -> bool:
    """Say whether a segment is a part, not the whole, of a residual's branch: its identity alone is then no option."""
    return any(
        residual.src <= start and end <= residual.dst and (residual.src, residual.dst) != (start, end)
        for residual in net.residuals
    )


def _ways_from(
    net: Description, chain: Chain, start: int, last: int, norms: Mapping[int, float], max_kernel: int
) -> Iterator[tuple[int, list[_Way]]]:
    """Yield (end, ways) for every segment from ``start``: for each state the best choice of layers."""
    branches = defaultdict(list)
    for src, dst in {(residual.src, residual.dst) for residual in net.residuals}:
        if (src, dst) in gone_branches(net, range(src + 1, dst + 1)):
            branches[src].append(dst)
    table: dict[int, dict[_State, _Way]] = defaultdict(dict)
    table[start][_State(Footprint.identity(net.layer(start + 1).conv.in_channels))] = (0.0, ())
    for position in range(start, last + 1):
        here = table.pop(position, {})
        if position > start and not any(crosses(start, position, residual) for residual in net.residuals):
            done = [
                way
                for state, way in here.items()
                if (state.num_steps or not _is_inside_branch(net, start, position)) and way[1]
            ]
            if done:
                yield position, done
        if position == last:
            break
        for state, (norm, dropped) in here.items():
            opened = _opened(net, position, last, state)
            layer = net.layer(position + 1)
            kept = _after(net, position + 1, _with_step(opened, layer.conv, layer.kind in _WORKING))
            _offer(table[position + 1], kept, (norm + norms.get(position + 1, 0.0), dropped), max_kernel)
            if layer.kind == "conv" and keeps_shape(layer):
                without = _after(net, position + 1, opened)
                _offer(table[position + 1], without, (norm, (*dropped, position + 1)), max_kernel)
            for dst in sorted(dst for dst in branches[position] if dst <= last):
                gone = tuple(range(position + 1, dst + 1))
                left = _after(net, dst, _gone(net, position, dst, opened))
                _offer(table[dst], left, (norm, (*dropped, *gone)), max_kernel)


def _offer(states: dict[_State, _Way], state: _State | None, way: _Way, max_kernel: int) -> None:
    if state is None:
        return
    reach = max(high - low for low, high in zip(state.reads.low, state.reads.high, strict=True))
    if state.num_steps > 1 and reach >= max_kernel:
        return
    known = states.get(state)
    if known is None or (-way[0], len(way[1]), way[1]) < (-known[0], len(known[1]), known[1]):
        states[state] = way


def _opened(net: Description, position: int, last: int, state: _State) -> _State:
    """Return a state with the residuals that begin at ``position``."""
    fresh = tuple(
        (position, dst, state.reads, False)
        for dst in sorted({residual.dst for residual in net.residuals if residual.src == position})
        if dst <= last
    )
    return _State(state.reads, state.open + fresh, state.lone, state.num_steps)


def _with_step(state: _State, conv: ConvSpec, works: bool) -> _State:
    dilation = conv.dilation if state.num_steps == 0 and conv.dilation != (1, 1) else None
    opened = tuple((src, dst, reads, has_kept or works) for src, dst, reads, has_kept in state.open)
    return _State(state.reads.then(conv), opened, dilation, min(state.num_steps + 1, 2))


def _gone(net: Description, src: int, dst: int, state: _State) -> _State:
    """Return the state behind a branch that is gone: the sum of the shortcuts from its start to its end."""
    sums: Footprint | None = None
    steps, lone = state.num_steps, state.lone
    ways = [residual for residual in net.residuals if (residual.src, residual.dst) == (src, dst)]
    for residual in sorted(ways, key=lambda way: -len(way.shortcut)):
        reads = state.reads
        for conv in residual.shortcut:
            lone = conv.dilation if steps == 0 and conv.dilation != (1, 1) else None
            reads, steps = reads.then(conv), min(steps + 1, 2)
        sums = reads if sums is None else sums.plus(reads)
    if len(ways) > 1:
        steps, lone = 2, None
    assert sums is not None
    # What began there and ends no later is gone too; a shortcut's convs are something that an outer branch keeps.
    has_convs = any(way.shortcut for way in ways)
    still_open = tuple(
        (start, end, source, has_kept or has_convs)
        for start, end, source, has_kept in state.open
        if start != src or end > dst
    )
    return _State(sums, still_open, lone, steps)


def _after(net: Description, position: int, state: _State) -> _State | None:
    """Return a state once the residuals that end at ``position`` are added; None where a branch would be left empty."""
    reads, steps, lone = state.reads, state.num_steps, state.lone
    for src, dst, source, has_kept in state.open:
        if dst == position:
            if not has_kept:
                return None
            for residual in net.residuals:
                if (residual.src, residual.dst) == (src, dst):
                    branch = source
                    for conv in residual.shortcut:
                        branch = branch.then(conv)
                    reads = reads.plus(branch)
            steps, lone = 2, None
    return _State(reads, tuple(each for each in state.open if each[1] != position), lone, steps)
