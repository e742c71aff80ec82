"""How much of a damage is still there after finetuning.

Importances are measured before the network is finetuned as a whole, and what finetuning makes up for is not alike: a
change of few weights leaves all the others to make up for it. Against entries that were finetuned, on ResNet-20 and
MobileNetV2, damage times the root of the share of weights ranks better, and is nearer in size, than damage alone
(docs/importance.md); the root is a fit to these, not a theorem.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from layerfold.graph import Network
from layerfold.graph.dropping import dropped_layers
from layerfold.importance.requests import Request
from layerfold.solver import Solution


def lasting_share(net: Network, request: Request) -> float:
    """Return what share, 0..1, of a segment's damage is expected to outlast finetuning.

    It is the root of the share of the layers' weights that the segment holds. A layer without any counts as the
    smallest that has some.
    """
    return _root_of_share(net, range(request.start + 1, request.end + 1))


def lasting_share_of_plan(net: Network, solution: Solution) -> float:
    """Return the same of a whole plan's damage: by what all segments hold that are not as in the original."""
    segments = net.segments_of(solution.merge_pos, dropped_layers(net, solution.kept_layers))
    changed = [each for each in segments if each.num_layers > 1 or each.dropped]
    return _root_of_share(net, (layer for each in changed for layer in range(each.start + 1, each.end + 1)))


def _root_of_share(net: Network, layers: Iterable[int]) -> float:
    counts = [layer.conv.num_params for layer in net.layers]
    least = min((count for count in counts if count), default=1)
    weights = [max(count, least) for count in counts]
    return math.sqrt(sum(weights[layer - 1] for layer in layers) / sum(weights))
