"""How activations are searched. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from layerfold.arguments import check_bounds
from layerfold.budget import check_one_given
from layerfold.errors import UsageError
from layerfold.options.finetune import FinetuneOptions
from layerfold.settings import check_settings, setting

Granularity = Literal["slot", "block"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Settings of a search: its target, which is one of ``keep``, ``budget_ms`` and ``speedup``, and the way there.

    Attributes:
        keep: gates that stay on, 0..number of gates, or a share of them below 1, besides those that free no merge.
        budget_ms: end-to-end latency that the table must predict for the result, above 0; needs a latency table.
        speedup: the original's predicted latency / budget, above 0; needs a latency table.
        granularity: a gate for each ``slot`` or each ``block``; see :func:`layerfold.search.list_gates`.
        anneal: share of the steps at which the target is reached, 0..1.
        training: epochs, learning rate, teacher's share and the like; gates stay on until its ``warmup`` is over.
        distill: learn from the original's logits too; without labels, from them alone.
        max_kernel: largest merged kernel where there is no table, at least 1.
        model_name: what the user calls the model, for the solution.

    Example:
        >>> options = lf.SearchOptions(speedup=1.5, training=lf.FinetuneOptions(epochs=30))
        >>> options.granularity
        'slot'
    """

    keep: float | None = None
    budget_ms: float | None = None
    speedup: float | None = None
    granularity: Granularity = setting(
        "slot", choices=GRANULARITIES, help="a gate for each activation, or for all of a block"
    )
    anneal: float = setting(0.5, least=0, most=1, help="share of the steps at which the target is reached")
    training: FinetuneOptions = field(default_factory=FinetuneOptions)
    distill: bool = True
    max_kernel: int = setting(15, least=1, metavar="K", help="largest kernel of a merged conv, where there is no table")
    model_name: str = ""

    one_of: ClassVar[tuple[str, ...]] = ("keep", "budget_ms", "speedup")

    def __post_init__(self) -> None:
        check_settings(self)
        check_one_given({name: getattr(self, name) for name in self.one_of}, "give one of the three")
        for name in ("budget_ms", "speedup"):
            check_bounds(name, getattr(self, name), above=0)
        if self.training.keep == "best":
            raise UsageError("training.keep='best': epochs with other gates on cannot be compared; use keep='last'")
