"""What DepthShrinker published: which activations it keeps, and how it searches.

Fu et al., *DepthShrinker* (ICML 2022, arXiv 2206.00843). The facts are those of the configurations in the authors'
repository, github.com/facebookresearch/DepthShrinker, at commit 1df43aa: ``ACT_LIST`` of ``configs/mbv2-140-A.yaml``
to ``-F.yaml``, and ``L0_SPARSITY`` of ``configs/efflite0.yaml``; no list was published for EfficientNet-Lite0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from layerfold.arguments import checked
from layerfold.errors import UsageError, nearest_names
from layerfold.graph.network import Network
from layerfold.options.search import Granularity
from layerfold.search._merging import BestMerging
from layerfold.solver import Solution
from layerfold.tables import LatencyTable

_NUM_LAYERS = 52
_STAGE_STARTS = (0, 2, 5, 9, 12, 15)
"""Inverted residuals, counted from 0, that begin a stage and so have no residual."""
_NUM_BLOCKS = 16


@dataclass(frozen=True, kw_only=True)
class PublishedSearch:
    """Settings of a published search.

    Attributes:
        model: the network it was for.
        granularity: what has a gate.
        keep: share of the gates that stay on.
    """

    model: str
    granularity: Granularity
    keep: float


PUBLISHED_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "mobilenetv2_140-A": "0100110101011011111",
        "mobilenetv2_140-B": "1000110000011011111",
        "mobilenetv2_140-C": "1100100000011011111",
        "mobilenetv2_140-D": "0000110000000011111",
        "mobilenetv2_140-E": "0100100000000011111",
        "mobilenetv2_140-F": "1000000000000000001",
    }
)
"""By name, what stays (1): the stem's activation, the separable conv's, each inverted residual's two, the head's."""

PUBLISHED_SEARCHES: Mapping[str, PublishedSearch] = MappingProxyType(
    {
        "efficientnet_lite0": PublishedSearch(model="timm:efficientnet_lite0", granularity="block", keep=0.4),
        "mobilenetv2_140": PublishedSearch(model="timm:mobilenetv2_140", granularity="block", keep=0.4),
    }
)


@checked
def published_pattern(
    name: str, net: Network, latency: LatencyTable | None = None, *, model_name: str = ""
) -> Solution:
    """Return a published pattern as a solution for a MobileNetV2 of any width, timm's or torchvision's.

    An inverted residual without activations gets one behind it, as published. The head's is a chain's end and stays.

    Args:
        name: ``mobilenetv2_140-A`` to ``-F``.
        net: the whole network, traced without exclusions.
        latency: its latency table, from which the fastest merging follows. Without it, as published, each inverted
            residual without activations is merged, and nothing else.
        model_name: what the user calls the model.

    Raises:
        UsageError: no such pattern, or a pattern of another network.
        ProvenanceMismatchError: a table of another network.

    Example:
        >>> loaded = lf.load_model("timm:mobilenetv2_035")
        >>> net = lf.trace_network(loaded.module, torch.zeros(1, 3, 32, 32))
        >>> solution = lf.published_pattern("mobilenetv2_140-A", net)
        >>> len(net.original_act_pos), len(solution.act_pos)
        (35, 28)
    """
    if name not in PUBLISHED_PATTERNS:
        known = ", ".join(PUBLISHED_PATTERNS)
        raise UsageError(f"pattern={name!r}: must be one of {known}{nearest_names(name, PUBLISHED_PATTERNS)}")
    _check_is_mobilenet_v2(name, net)
    stem, separable, *blocks, _ = (flag == "1" for flag in PUBLISHED_PATTERNS[name])
    acts = {position for position, stays in ((1, stem), (2, separable), (_NUM_LAYERS, True)) if stays}
    merged_over: set[int] = set()
    for block, stays in enumerate(blocks):
        first = 4 + 3 * block
        acts |= {first, first + 1} if stays else {first + 2}
        merged_over |= set() if stays else {first, first + 1}
    stops = [position for position in range(1, _NUM_LAYERS + 1) if position not in merged_over]
    merging = BestMerging(net, latency)
    return merging.solution(acts, model=model_name, stops=stops if latency is None else None)


def _check_is_mobilenet_v2(name: str, net: Network) -> None:
    depthwise = {2, *(5 + 3 * block for block in range(_NUM_BLOCKS))}
    residuals = {(3 + 3 * b, 6 + 3 * b) for b in range(_NUM_BLOCKS) if b not in _STAGE_STARTS}
    is_it = (
        [(chain.start, chain.end) for chain in net.chains] == [(0, _NUM_LAYERS)]
        and {layer.index for layer in net.layers if layer.conv.is_depthwise} == depthwise
        and {(residual.src, residual.dst) for residual in net.residuals} == residuals
        and all(net.has_activation(p) == (p < 3 or p % 3 != 0) for p in range(1, _NUM_LAYERS + 1))
    )
    if not is_it:
        raise UsageError(
            f"pattern={name!r}: is for MobileNetV2, one chain of {_NUM_LAYERS} layers traced without exclusions; "
            f"this is {net.name} of {len(net.layers)} layers in {len(net.chains)} chains; search for a pattern of "
            "its own"
        )
