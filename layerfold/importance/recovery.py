"""How much of a damage is still there after finetuning.

Importances are measured before the network is finetuned as a whole, and what finetuning makes up for is not alike: a
change of few weights leaves all the others to make up for it. Against entries that were finetuned, on ResNet-20 and
MobileNetV2, damage times the root of the share of weights ranks better, and is nearer in size, than damage alone
(docs/importance.md); the root is a fit to these, not a theorem.
"""

from __future__ import annotations

import math

from layerfold.graph import Network
from layerfold.importance.requests import Request


def lasting_share(net: Network, request: Request) -> float:
    """Return what share, 0..1, of a segment's damage is expected to outlast finetuning.

    It is the root of the share of the layers' weights that the segment holds. A layer without any counts as the
    smallest that has some.
    """
    counts = [layer.conv.num_params for layer in net.layers]
    least = min((count for count in counts if count), default=1)
    weights = [max(count, least) for count in counts]
    return math.sqrt(sum(weights[request.start : request.end]) / sum(weights))
