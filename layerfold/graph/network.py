"""A traced network, as the solver and its callers ask it: a description, and the segments that levers offer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from layerfold.arguments import checked
from layerfold.errors import SolutionError
from layerfold.graph.candidates import CandidateRules, merged_segment
from layerfold.graph.description import Description, Segment
from layerfold.graph.dropping import dropped_layers, effective_stops
from layerfold.tables.levers import DROP, Change, lever_of

if TYPE_CHECKING:
    from layerfold.solver import Solution


@dataclass(frozen=True, kw_only=True)
class Network(Description):
    """A traced network: a description only; fields as of :class:`Description`.

    Example:
        >>> len(net.layers), net.original_act_pos
        (3, (1, 2, 3))
        >>> [(segment.start, segment.end) for segment in net.candidates()]
        [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
        >>> [segment.merged for segment in net.segments_of(solution.merge_pos)]
        ['3x3', '5x5']
    """

    def segment(self, start: int, end: int, dropped: Collection[int] = ()) -> Segment:
        """Return layers start+1..end, less those in ``dropped``, as one merged segment.

        Raises:
            SolutionError: no such segment, or a dropped layer that changes the shape.
        """
        return merged_segment(self, start, end, dropped)

    @checked
    def candidates(
        self,
        stop_at_strides: bool = False,
        max_kernel: int = 15,
        max_growth: float | None = None,
        *,
        layer_norms: Mapping[int, float] | None = None,
        levers: Collection[str] | None = None,
    ) -> list[Segment]:
        """Return every segment that may be merged, by (start, end), then what other levers offer.

        Args:
            stop_at_strides: the published restriction: past a strided layer c, no segment goes beyond c+1.
            max_kernel: largest height or width of a merged kernel (single layers are always candidates).
            max_growth: largest ratio of merged multiply-adds to those of the layers replaced; None for no limit.
            layer_norms: layer to the L1 norm of its weights (:func:`layerfold.layer_norms`). If given, options in which
                layers are dropped follow behind the others: for each merged kernel that a segment can come down to,
                the one that keeps the layers of greatest norm (Kim et al., *LayerMerge*, ICML 2024, section 3).
            levers: names of the levers to use (``layerfold.tables.levers``); None for ``merge``, and ``drop`` if
                ``layer_norms`` is given. Each layer on its own is always there.
        """
        rules = CandidateRules(
            stop_at_strides=stop_at_strides, max_kernel=max_kernel, max_growth=max_growth, layer_norms=layer_norms
        )
        if levers is None:
            levers = ("merge",) if layer_norms is None else ("merge", DROP)
        found = [] if "merge" in levers else [self.segment(layer.index - 1, layer.index) for layer in self.layers]
        return found + [segment for name in levers for segment in lever_of(name, "levers").options(self, rules)]

    def changed(self, changes: Iterable[Change]) -> Network:
        """Return the network with what levers make of its layers: the same positions, described anew.

        Dropped layers are passed over: they are told apart by segments (:meth:`segments_of`).

        Raises:
            SolutionError: a lever that is not known, or layers that the network does not have.
        """
        layers = list(self.layers)
        for word, indices in changes:
            lever = lever_of(word, "plan", SolutionError)
            for index in indices or () if lever.name != DROP else ():
                if not 1 <= index <= len(layers):
                    raise SolutionError(f"{word} of layer {index}: this network has layers 1..{len(layers)}")
                before = layers[index - 1]
                made = layers[index - 1] = replace(lever.changed_layer(before, word), variant=word)
                if made.conv.output_shape(before.input_shape) != before.output_shape:
                    raise SolutionError(f"{word} of layer {index} ({before.name}): a lever must keep a layer's shapes")
        return self if layers == list(self.layers) else replace(self, layers=tuple(layers))

    def segments_in(self, solution: Solution) -> list[Segment]:
        """Return the segments of a solution, changed as it says."""
        dropped = dropped_layers(self, solution.kept_layers)
        return self.changed(solution.changes).segments_of(solution.merge_pos, dropped)

    def segments_of(self, merge_pos: Iterable[int], dropped: Collection[int] = ()) -> list[Segment]:
        """Return the segments between the positions of ``merge_pos`` (chain ends are implied).

        Where all of a residual's branch is dropped, what lies between its ends is one segment, whatever
        ``merge_pos`` says.
        """
        stops = effective_stops(self, merge_pos, dropped)
        found = []
        for chain in self.chains:
            start = chain.start
            for position in range(chain.start + 1, chain.end + 1):
                if position in stops or position == chain.end:
                    found.append(self.segment(start, position, dropped))
                    start = position
        return found
