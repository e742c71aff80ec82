"""How fast a search goes from all activations to its target."""

from __future__ import annotations

from dataclasses import dataclass

from layerfold.arguments import check_fields
from layerfold.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """From all gates on to the target, fast at first, since the first activations to go are missed least.

    Attributes:
        begin: share of the steps before which all gates stay on, so that scores mean something first.
        end: share of the steps at which the target is reached; from there on only the order of gates changes.

    Source: the cubic schedule of Zhu and Gupta, *To prune, or not to prune* (2017, arXiv 1710.01878), section 3.
    """

    begin: float
    end: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.begin <= 1 or not 0 <= self.end <= 1:
            raise UsageError(f"anneal={self.end!r}: must be within 0..1")

    def share_at(self, step: int, total_steps: int) -> float:
        """Return how much of the way is done before step 0..total_steps-1: 0 for nothing, 1 for the target."""
        done, begin = step / total_steps, min(self.begin, self.end)
        if done >= self.end:
            return 1.0
        left = 1 - max(done - begin, 0.0) / (self.end - begin) if self.end > begin else 1.0
        return 1.0 - left**3
