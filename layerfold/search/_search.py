"""Learned activation removal: train a network with gates until the target is reached, and read A off them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from layerfold.budget import Budget, check_one_given
from layerfold.data import ImageData
from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.finetune import FinetuneOptions, FinetuneReport, train_network
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.search._gated import GatedNetwork
from layerfold.search._gates import Gate, Granularity, list_gates
from layerfold.search._merging import BestMerging
from layerfold.search._needless import Choice, without_needless
from layerfold.search._schedule import Annealing
from layerfold.search._targets import BudgetTarget, NumberTarget, Target
from layerfold.solver import Solution
from layerfold.tables import LatencyTable


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """A gate after the search.

    Attributes:
        name: of the layer in front of its first activation.
        positions: where its activations are.
        score: what gates were ranked by.
        is_on: whether its activations stay; of a block's some may stay all the same, where merging stops anyway.
    """

    name: str
    positions: tuple[int, ...]
    score: float
    is_on: bool


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search gave.

    Attributes:
        solution: A as learned, and the S that follows from it.
        gates: every gate, by position.
        training: its history.
        weights: the weights that the search ended with, by the model's own names.
    """

    solution: Solution
    gates: tuple[GateResult, ...]
    training: FinetuneReport
    weights: dict[str, Tensor]

    def as_dict(self) -> JsonObject:
        """Return plain values, for JSON; without weights."""
        return {
            "solution": self.solution.to_json(),
            "gates": [asdict(gate) for gate in self.gates],
            "training": self.training.as_dict(),
        }


@network_call
def search_activations(
    model: nn.Module,
    net: Network,
    data: ImageData,
    *,
    keep: float | None = None,
    budget_ms: float | None = None,
    speedup: float | None = None,
    latency: LatencyTable | None = None,
    granularity: Granularity = "slot",
    anneal: float = 0.5,
    training: FinetuneOptions | None = None,
    distill: bool = True,
    max_kernel: int = 15,
    checkpoint_path: str | Path | None = None,
    checkpoint_every_s: float = 60.0,
    device: str = "cpu",
    progress: bool = True,
    model_name: str = "",
) -> SearchResult:
    """Learn which activations of a trained network may go (DepthShrinker), to a number or to a latency budget.

    Every activation inside a chain (or every block's) gets a learnable gate. Weights and gates are trained together;
    in each forward pass the best gates are on and the others off, and the number of gates on, or the latency allowed,
    goes from that of the original to the target. With a number the gates of the highest scores are on. With a budget
    a gate costs what it keeps apart: of all choices whose fastest merging keeps to the budget, that with the highest
    sum of scores is taken, exactly. At every step an activation whose removal frees no merge stays, whatever its score:
    it costs no time.

    Args:
        model: the trained network, also the teacher; left untouched.
        net: its description.
        data: its train split is learned, its holdout scored after every epoch; without labels the original's answers
            are learned, so ``distill`` must stay.
        keep: gates that stay on, 0..number of gates, or a share of them below 1, besides those that free no merge; one
            of ``keep``, ``budget_ms`` and ``speedup``.
        budget_ms: end-to-end latency that the table must predict for the result, above 0; needs ``latency``.
        speedup: the original's predicted latency / budget, above 0; needs ``latency``.
        latency: table from which S follows (stage 1). Without it S merges into as few convs as candidates allow, of
            as few into those of the least multiply-adds.
        granularity: a gate for each ``slot`` or each ``block``; see :func:`layerfold.search.list_gates`.
        anneal: share of the steps at which the target is reached, 0..1.
        training: epochs, learning rate, teacher's share and the like; gates stay on until its ``warmup`` is over.
        distill: learn from the original's logits too; without labels, from them alone.
        max_kernel: largest merged kernel where there is no table.
        checkpoint_path: file that holds the state of the run; if it exists the run goes on from it, and ends as it
            would have without the interruption.
        checkpoint_every_s: seconds between two writes of it.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        progress: show a bar with an ETA on stderr.
        model_name: what the user calls the model, for the solution.

    Raises:
        UsageError: an option outside its range, more gates to keep than there are, or no activation that could go.
        InfeasibleBudgetError: no choice of gates reaches the budget; names the least latency.
        ProvenanceMismatchError: a table of another network.
        FinetuneError: training diverged.

    Source: Fu et al., *DepthShrinker* (ICML 2022, arXiv 2206.00843), sections 3.2 and 3.3. The budget is ours.
    """
    options = training or FinetuneOptions()
    if options.keep == "best":
        raise UsageError("training.keep='best': epochs with other gates on cannot be compared; use keep='last'")
    gates = list_gates(net, granularity)
    merging = BestMerging(net, latency, max_kernel=max_kernel)
    target = _target_of(net, gates, merging, keep, budget_ms, speedup)
    annealing = Annealing(begin=options.warmup, end=anneal)
    gated = GatedNetwork(model, net, gates)

    def choose(share: float) -> Choice:
        return without_needless(merging, gates, target.choose(gated.scores, share))

    def switch_gates(step: int, total_steps: int) -> None:
        choice = choose(annealing.share_at(step, total_steps))
        gated.switch(choice.on, choice.staying)

    settings = {
        "granularity": granularity,
        "anneal": anneal,
        "latency": merging.table.hash,
        "target": repr(target.describe()),
    }
    report = train_network(
        gated.module,
        data,
        options,
        teacher=model if distill else None,
        before_step=switch_gates,
        settings=settings,
        checkpoint_path=checkpoint_path,
        checkpoint_every_s=checkpoint_every_s,
        device=device,
        progress=progress,
        description="Searching",
    )
    scores = gated.scores
    choice = choose(1.0)
    solution = merging.solution(choice.act_pos, model=model_name, budget_ms=target.describe().get("budget_ms"))
    return SearchResult(
        solution=solution,
        gates=tuple(
            GateResult(name=gate.name, positions=gate.positions, score=score, is_on=is_on)
            for gate, score, is_on in zip(gates, scores, choice.on, strict=True)
        ),
        training=report,
        weights=_weights_for(model, gated.module),
    )


def _target_of(
    net: Network,
    gates: tuple[Gate, ...],
    merging: BestMerging,
    keep: float | None,
    budget_ms: float | None,
    speedup: float | None,
) -> Target:
    check_one_given({"keep": keep, "budget_ms": budget_ms, "speedup": speedup}, "give one of the three")
    if keep is not None:
        return NumberTarget(len(gates), keep)
    if not merging.has_latencies:
        raise UsageError(f"budget_ms={budget_ms}, speedup={speedup}: needs latency, the network's latency table")
    if speedup is not None:
        budget_ms = Budget(speedup=speedup).in_ms(merging.table.original_ms)
    assert budget_ms is not None
    return BudgetTarget(net, gates, merging, budget_ms)


def _weights_for(model: nn.Module, searched: nn.Module) -> dict[str, Tensor]:
    found = searched.state_dict()
    return {name: found.get(name, value).detach().cpu().clone() for name, value in model.state_dict().items()}
