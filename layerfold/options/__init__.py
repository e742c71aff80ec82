"""The settings of each job as one frozen dataclass, which says units, limits and defaults. No torch here.

They lie together and without torch, so that the command line makes its flags from them before anything heavy is loaded.
"""

from __future__ import annotations

from layerfold.options.finetune import FinetuneOptions, RunOptions
from layerfold.options.importance import ImportanceOptions, Refinement
from layerfold.options.search import SearchOptions

__all__ = ["FinetuneOptions", "ImportanceOptions", "Refinement", "RunOptions", "SearchOptions"]
