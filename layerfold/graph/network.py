"""A traced network, as the solver and its callers ask it: a description, and the segments that may be merged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from layerfold.arguments import checked
from layerfold.graph.candidates import list_candidates, merged_segment
from layerfold.graph.description import Description, Segment
from layerfold.graph.drop_options import list_drop_options
from layerfold.graph.dropping import effective_stops


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
    ) -> list[Segment]:
        """Return every segment that may be merged, by (start, end).

        Args:
            stop_at_strides: the published restriction: past a strided layer c, no segment goes beyond c+1.
            max_kernel: largest height or width of a merged kernel (single layers are always candidates).
            max_growth: largest ratio of merged multiply-adds to those of the layers replaced; None for no limit.
            layer_norms: layer to the L1 norm of its weights (:func:`layerfold.layer_norms`). If given, options in which
                layers are dropped follow behind the others: for each merged kernel that a segment can come down to,
                the one that keeps the layers of greatest norm (Kim et al., *LayerMerge*, ICML 2024, section 3).
        """
        found = list_candidates(self, stop_at_strides=stop_at_strides, max_kernel=max_kernel, max_growth=max_growth)
        if layer_norms is None:
            return found
        return found + list_drop_options(
            self, layer_norms, stop_at_strides=stop_at_strides, max_kernel=max_kernel, max_growth=max_growth
        )

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
