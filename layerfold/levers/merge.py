"""Merging: several layers become one conv. It changes no layer, so that keys, columns and forms are the plain ones."""

from __future__ import annotations

from layerfold.graph.candidates import CandidateRules, list_candidates
from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.tables.levers import Lever


class Merge(Lever):
    """Segments of every layer, and each layer on its own."""

    name = "merge"
    columns = ()

    def options(self, net: Network, rules: CandidateRules) -> list[Segment]:
        return list_candidates(net, rules)
