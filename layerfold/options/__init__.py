"""The settings of each job as one frozen dataclass, which says units, limits and defaults. No torch here.

They lie together and without torch, so that the command line makes its flags from them before anything heavy is loaded.
"""

from __future__ import annotations

from layerfold.options.data import DataOptions
from layerfold.options.export import ExportOptions
from layerfold.options.finetune import FinetuneOptions, RunOptions
from layerfold.options.importance import ImportanceOptions, Refinement
from layerfold.options.measure import BenchmarkOptions, CompareOptions, ProfileOptions, VerifyOptions
from layerfold.options.quantise import QuantiseOptions
from layerfold.options.search import SearchOptions
from layerfold.options.solve import LoopOptions, PlanScores, SolveOptions

__all__ = [
    "BenchmarkOptions",
    "CompareOptions",
    "DataOptions",
    "ExportOptions",
    "FinetuneOptions",
    "ImportanceOptions",
    "LoopOptions",
    "PlanScores",
    "ProfileOptions",
    "QuantiseOptions",
    "Refinement",
    "RunOptions",
    "SearchOptions",
    "SolveOptions",
    "VerifyOptions",
]
