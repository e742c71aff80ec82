"""What libraries write as loose calls, rewritten as the modules and functions that the vocabulary knows.

Each rewrite keeps what the graph computes. Modules that it needs and the model lacks are made by *installs*, which are
kept with the graph: they are done again on every copy of the model that the graph is put on.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from layerfold.graph.rewrites.activations import rewrite_activations
from layerfold.graph.rewrites.calls import rewrite_calls
from layerfold.graph.rewrites.padding import rewrite_padding
from layerfold.graph.rewrites.scales import rewrite_scales
from layerfold.graph.rewrites.slices import rewrite_slices
from layerfold.graph.rewrites.sums import rewrite_sums

Install = Callable[[nn.Module], None]
"""Adds one module to a copy of the model, under a fixed name."""

_REWRITES = (rewrite_calls, rewrite_activations, rewrite_scales, rewrite_slices, rewrite_padding, rewrite_sums)

__all__ = ["Install", "rewrite_graph"]


def rewrite_graph(module: fx.GraphModule) -> tuple[Install, ...]:
    """Rewrite, in place, a traced module whose nodes carry their shapes; return the installs, in order."""
    installs: list[Install] = []
    for rewrite in _REWRITES:
        for install in rewrite(module):
            installs.append(install)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return tuple(installs)
