"""For triage: how the loss would change, to second order, from one backward pass over the original.

Replacing an activation's output a by its input x changes an image's loss by t = <dL/da, x - a> to first order, leaving
out a layer by <dL/dout, in - out>, and leaving out all of a residual's branch by <dL/dout, -out>. A segment's terms add
up to s, and the mean loss changes by about mean(s) + mean(s^2) / 2: the Hessian is taken to be the outer product of the
gradients (empirical Fisher; Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, section 3,
for single neurons). Padding moved to the front is ignored.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from layerfold.errors import UsageError
from layerfold.graph.dropping import gone_branches, keeps_shape
from layerfold.importance.estimators.base import EstimatorBase
from layerfold.importance.estimators.protocol import Training
from layerfold.importance.requests import Request
from layerfold.importance.scores import ScoresByName
from layerfold.importance.subject import Subject


class Taylor(EstimatorBase):
    """See :class:`Estimator`. The loss is the cross-entropy with the labels of the calibration images."""

    is_recalibrated: ClassVar[bool] = False
    known_scores: ClassVar[tuple[str, ...]] = ("val_loss",)

    def __init__(self, subject: Subject, training: Training) -> None:
        super().__init__(subject, training)
        self._terms = _terms(subject)

    def scores_of(self, request: Request) -> ScoresByName:
        net = self.subject.net
        before, after = set(net.original_act_pos), set(request.act_pos(net))
        if after - before:
            raise UsageError("fill_slots=True: taylor knows activations that the original has; leave fill_slots out")
        if request.variant:
            raise UsageError(f"method='taylor' knows what is removed, not {request.variant}; choose another method")
        branches = gone_branches(net, request.dropped)
        # What a branch held goes with it; of a lone addition nothing goes.
        inside = {layer for src, dst in branches for layer in range(src + 1, dst + 1)}
        ends = {dst for _, dst in branches}
        lost = [("activation", position) for position in sorted(before - after) if position not in inside - ends]
        lost += [
            ("layer", index) for index in request.dropped if index not in inside and net.layer(index).kind != "add"
        ]
        lost += [("branch", dst) for dst in sorted(ends)]
        gone = [self._terms[each] for each in lost]
        change = torch.stack(gone).sum(0) if gone else torch.zeros(1)
        return {"val_loss": self.subject.original["val_loss"] + float(change.mean() + change.square().mean() / 2)}


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes, with a place for their gradients."""

    def __init__(self, form: fx.GraphModule, names: set[str]) -> None:
        super().__init__(form)
        self._names = names
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n.name in self._names:
            if found.requires_grad:
                found.retain_grad()
            self.values[n.name] = found
        return found


def _terms(subject: Subject) -> dict[tuple[str, int], Tensor]:
    """Return <gradient, new - old> of each image, by what would go.

    Keys are ("activation", position), ("layer", index), and ("branch", position) for all that is added there.
    """
    form = subject.original_form
    nodes = {node.name: node for node in form.graph.nodes}
    # What goes -> (name of what is there instead, None for nothing; name of what was).
    changes: dict[tuple[str, int], tuple[str | None, str]] = {}
    ends = {residual.dst for residual in subject.net.residuals}
    before = None  # the feature map in front of a layer; in front of the first, nothing that could go
    for index, (layer, names) in enumerate(zip(subject.net.layers, subject.net.graph.layers, strict=True), start=1):
        given = names.norm or names.op
        if given is not None and keeps_shape(layer):
            changes["layer", index] = (nodes[names.op].all_input_nodes[0].name, given)
        # Where a lone addition ends the branch, that gives what the layer before it gave.
        branch = given or before
        if index in ends and branch is not None:
            changes["branch", index] = (None, branch)
        before = names.feature
        if names.activation is not None:
            changes["activation", index] = (nodes[names.activation].all_input_nodes[0].name, names.activation)
    found: dict[tuple[str, int], list[Tensor]] = {key: [] for key in changes}
    for (images,), labels in zip(subject.calibration.inputs(), subject.calibration_labels, strict=True):
        recorder = _Recorder(form, {name for change in changes.values() for name in change if name is not None})
        # The images ask for a gradient, so that every value has one even where all weights are frozen.
        logits = recorder.run(images.clone().requires_grad_())
        F.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        for key, (read, given) in changes.items():
            old, gradient = recorder.values[given], recorder.values[given].grad
            assert gradient is not None
            new = 0.0 if read is None else recorder.values[read]
            found[key].append((gradient * (new - old).detach()).flatten(1).sum(1))
    return {key: torch.cat(values) for key, values in found.items()}
