"""The steps in their order, resumable: from a trained network and a budget to exported files and a report."""

from __future__ import annotations

from layerfold.pipeline.compress import CompressResult, compress_network
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.solution_comparison import ComparedNetwork, SolutionComparison, compare_solutions

__all__ = [
    "ComparedNetwork",
    "CompressOptions",
    "CompressResult",
    "SolutionComparison",
    "compare_solutions",
    "compress_network",
]
