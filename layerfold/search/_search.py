"""Learned activation removal: train a network with gates until the target is reached, and read A off them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from layerfold.budget import Budget
from layerfold.data import ImageData
from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.finetune import FinetuneReport, train_network
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.options import RunOptions, SearchOptions
from layerfold.search._gated import GatedNetwork
from layerfold.search._gates import Gate, list_gates
from layerfold.search._merging import BestMerging
from layerfold.search._needless import Choice, without_needless
from layerfold.search._schedule import Annealing
from layerfold.search._targets import BudgetTarget, NumberTarget, Target
from layerfold.settings import takes_settings
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
    """Result of a search.

    Attributes:
        solution: A as learned, and the S that follows from it.
        gates: every gate, by position.
        training: its history.
        weights: the weights that the search ended with, by the model's own names.

    Example:
        >>> found = lf.search_activations(
        ...     model, net, data, keep=1, training=lf.FinetuneOptions(steps=4, batch_size=16), progress=False
        ... )
        >>> [(gate.name, gate.positions) for gate in found.gates]
        [('0', (1,)), ('3', (2,))]
        >>> sorted(found.as_dict())
        ['gates', 'solution', 'training']
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


@takes_settings(options=SearchOptions, run=RunOptions)
@network_call
def search_activations(
    model: nn.Module,
    net: Network,
    data: ImageData,
    options: SearchOptions | None = None,
    *,
    latency: LatencyTable | None = None,
    run: RunOptions | None = None,
    **settings: Any,
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
        options, settings: see :class:`SearchOptions`; a setting given by name takes the place of that of ``options``.
            One of ``keep``, ``budget_ms`` and ``speedup`` must be given.
        latency: table from which S follows (stage 1). Without it S merges into as few convs as candidates allow, of
            as few into those of the least multiply-adds.
        run: where it trains, and what it keeps and shows: see :class:`RunOptions`, whose fields may be given by name
            too; ``keep_other`` may not.

    Raises:
        UsageError: an option outside its range, more gates to keep than there are, or no activation that could go.
        InfeasibleBudgetError: no choice of gates reaches the budget; names the least latency.
        ProvenanceMismatchError: a table of another network.
        FinetuneError: training diverged.

    Source: Fu et al., *DepthShrinker* (ICML 2022, arXiv 2206.00843), sections 3.2 and 3.3. The budget is ours.

    Example:
        >>> found = lf.search_activations(
        ...     model, net, data, keep=1, training=lf.FinetuneOptions(steps=4, batch_size=16), progress=False
        ... )
        >>> len(found.gates), found.solution.merge_pos[-1]
        (2, 3)
    """
    options, run = options or SearchOptions(), run or RunOptions()
    if run.keep_other:
        raise UsageError("keep_other=True: epochs with other gates on cannot be compared; leave it out")
    gates = list_gates(net, options.granularity)
    merging = BestMerging(net, latency, max_kernel=options.max_kernel)
    target = _target_of(net, gates, merging, options)
    annealing = Annealing(begin=options.training.warmup, end=options.anneal)
    gated = GatedNetwork(model, net, gates)

    def choose(share: float) -> Choice:
        return without_needless(merging, gates, target.choose(gated.scores, share))

    def switch_gates(step: int, total_steps: int) -> None:
        choice = choose(annealing.share_at(step, total_steps))
        gated.switch(choice.on, choice.staying)

    decisive = {
        "granularity": options.granularity,
        "anneal": options.anneal,
        "latency": merging.table.hash,
        "target": repr(target.describe()),
    }
    report = train_network(
        gated.module,
        data,
        options.training,
        replace(run, description=run.description or "Searching"),
        teacher=model if options.distill else None,
        before_step=switch_gates,
        settings=decisive,
    )
    scores = gated.scores
    choice = choose(1.0)
    solution = merging.solution(choice.act_pos, model=options.model_name, budget_ms=target.describe().get("budget_ms"))
    return SearchResult(
        solution=solution,
        gates=tuple(
            GateResult(name=gate.name, positions=gate.positions, score=score, is_on=is_on)
            for gate, score, is_on in zip(gates, scores, choice.on, strict=True)
        ),
        training=report,
        weights=_weights_for(model, gated.module),
    )


def _target_of(net: Network, gates: tuple[Gate, ...], merging: BestMerging, options: SearchOptions) -> Target:
    keep, budget_ms, speedup = options.keep, options.budget_ms, options.speedup
    if keep is not None:
        return NumberTarget(len(gates), keep)
    if not merging.has_latencies:
        raise UsageError(f"budget_ms={budget_ms}, speedup={speedup}: needs latency, the network's latency table")
    return BudgetTarget(
        net, gates, merging, Budget(budget_ms=budget_ms, speedup=speedup).in_ms(merging.table.original_ms)
    )


def _weights_for(model: nn.Module, searched: nn.Module) -> dict[str, Tensor]:
    found = searched.state_dict()
    return {name: found.get(name, value).detach().cpu().clone() for name, value in model.state_dict().items()}
