"""The network that is searched: the original, with a learnable gate behind each activation that may go."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx, nn

from layerfold.graph.functional import make_out_of_place
from layerfold.graph.network import Network
from layerfold.graph.traced import TracedGraph
from layerfold.search._gates import Gate

_PREFIX = "search_gate_"


class LearnableGate(nn.Module):
    """Passes an activation on, or what it was computed from.

    The forward pass is hard. The score learns as if the gate were x + score * (activation(x) - x), straight through
    (DepthShrinker, section 3.3): a score rises where the loss would be lower with more of the activation.

    Attributes:
        score: what gates are ranked by; higher stays.
        is_on: whether the activations stay.
        staying: positions of those that stay while the gate is off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.zeros(()))
        self.is_on = True
        self.staying: Collection[int] = ()

    def forward(self, x: Tensor, activated: Tensor, position: int = 0) -> Tensor:
        value = activated if self.is_on or position in self.staying else x
        if not torch.is_grad_enabled():
            return value
        return value + (self.score - self.score.detach()) * (activated - x).detach()


class GatedNetwork:
    """A copy of a network with gates, ready to be trained.

    Args:
        model: the module that ``net`` was traced from; left untouched.
        net: its description.
        gates: of :func:`list_gates`.

    Attributes:
        module: the copy; with all gates on it computes what ``model`` does.
    """

    def __init__(self, model: nn.Module, net: Network, gates: Sequence[Gate]) -> None:
        traced: TracedGraph = net.graph
        self.module: fx.GraphModule = traced.on(model)
        for part in list(self.module.modules()):
            make_out_of_place(part)  # a gate needs what the activation was computed from
        nodes = {node.name: node for node in self.module.graph.nodes}
        self._gates: list[LearnableGate] = []
        for gate in gates:
            learnable = LearnableGate()
            self.module.add_submodule(f"{_PREFIX}{gate.positions[0]}", learnable)
            self._gates.append(learnable)
            for position in gate.positions:
                activation = nodes[str(traced.layers[position - 1].activation)]
                with self.module.graph.inserting_after(activation):
                    gated = self.module.graph.call_module(f"{_PREFIX}{gate.positions[0]}")
                activation.replace_all_uses_with(gated)
                gated.args = (activation.all_input_nodes[0], activation, position)
        self.module.graph.lint()
        self.module.recompile()

    @property
    def scores(self) -> list[float]:
        """The gates' scores, in their order."""
        return [float(each) for each in torch.stack([gate.score.detach() for gate in self._gates]).tolist()]

    def switch(self, on: Sequence[bool], staying: Collection[int] = ()) -> None:
        """Turn each gate on or off; the activations at the positions ``staying`` stay whatever their gate says."""
        for gate, is_on in zip(self._gates, on, strict=True):
            gate.is_on, gate.staying = bool(is_on), staying
