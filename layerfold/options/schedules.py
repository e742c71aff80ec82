"""How the learning rate moves over a run: a function of the step alone, so that a resumed run needs no state for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from layerfold.options.finetune import FinetuneOptions

ScheduleName = Literal["cosine", "step", "multistep", "poly", "constant"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


def rate_share(step: int, total_steps: int, options: FinetuneOptions) -> float:
    """Return the learning rate of step 0..total_steps-1 as a share of the highest.

    It rises linearly in the warm-up. Of what follows, t steps of T are done:

    - ``cosine``: (1 + cos(pi t / T)) / 2
    - ``step``: decay_rate ^ floor(t / (decay_every T))
    - ``multistep``: decay_rate ^ (number of ``milestones`` m with m T <= t)
    - ``poly``: (1 - t / T) ^ decay_power
    - ``constant``: 1

    These are timm's schedules of those names, with their times as shares of the run in place of epochs.
    """
    warmup_steps = round(options.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    after, length = step - warmup_steps, max(total_steps - warmup_steps, 1)
    match options.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * after / length))
        case "step":
            return options.decay_rate ** (after // max(round(options.decay_every * length), 1))
        case "multistep":
            passed = sum(round(milestone * length) <= after for milestone in options.milestones)
            return options.decay_rate**passed
        case "poly":
            return float((1 - after / length) ** options.decay_power)
        case "constant":
            return 1.0
