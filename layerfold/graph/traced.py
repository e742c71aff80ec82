"""The torch.fx graph behind a Network: which node is what, and how to put the graph on a model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from layerfold.errors import UsageError
from layerfold.graph.normalise import normalise_modules
from layerfold.graph.rewrites import Install


@dataclass(frozen=True, kw_only=True)
class LayerNodes:
    """Names of the graph nodes that belong to one layer; what ``merge`` edits.

    Attributes:
        op: the node of the conv, or of what is described as one; None for a lone addition.
        norm: the norm node folded into it, or None.
        adds: additions behind the layer, in order; activation: the activation node or None.
        feature: the node whose value the next layer reads.
    """

    op: str | None
    norm: str | None
    adds: tuple[str, ...]
    activation: str | None
    feature: str

    @property
    def anchor(self) -> str:
        """The first node of the layer."""
        return self.op or self.adds[0]


@dataclass(frozen=True, kw_only=True)
class ResidualNodes:
    """Names of one residual's nodes: its addition, and the (op, norm) pairs of its shortcut."""

    add: str
    shortcut: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, kw_only=True)
class TracedGraph:
    """The torch.fx graph behind a Network, and which node is what.

    Attributes:
        graph: the normalised graph.
        installs: the modules that the graph calls and the model lacks.
        layers: by layer index - 1; residuals: as ``Network.residuals``.
        inputs: by chain, the node that feeds its first layer.
        excluded, merge_pooling: what it was traced with.
        whole: names of modules with parts that the graph calls as one.
    """

    graph: fx.Graph
    installs: tuple[Install, ...]
    layers: tuple[LayerNodes, ...]
    residuals: tuple[ResidualNodes, ...]
    inputs: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    merge_pooling: bool = False
    whole: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Go to another process without the graph, which :func:`trace_again` makes there: fx graphs do not pickle."""
        return {**self.__dict__, "graph": None, "installs": ()}

    def on(self, model: nn.Module, graph: fx.Graph | None = None) -> fx.GraphModule:
        """Return a copy of the graph (or ``graph``, an edited copy) on a deep copy of ``model``'s modules.

        Raises:
            UsageError: ``model`` lacks a module or parameter that the graph uses.
        """
        root = normalise_modules(model, self.whole)
        try:
            for install in self.installs:
                install(root)
            modes = {name: part.training for name, part in root.named_modules()}
            module = fx.GraphModule(
                root, copy.deepcopy(self.graph) if graph is None else graph, class_name=type(model).__name__
            )
        except AttributeError as error:
            raise UsageError(
                f"net was traced from another model than this {type(model).__name__} ({error}); trace this one"
            ) from error
        for name, part in module.named_modules():
            part.training = modes.get(name, model.training)
        return module
