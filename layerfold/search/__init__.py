"""Which activations may go: learned with gates, or as published."""

from __future__ import annotations

from layerfold.options.search import GRANULARITIES, Granularity
from layerfold.search._gates import Gate, activations_left, list_gates
from layerfold.search._merging import BestMerging
from layerfold.search._patterns import PUBLISHED_PATTERNS, PUBLISHED_SEARCHES, PublishedSearch, published_pattern
from layerfold.search._search import GateResult, SearchResult, search_activations

__all__ = [
    "GRANULARITIES",
    "PUBLISHED_PATTERNS",
    "PUBLISHED_SEARCHES",
    "BestMerging",
    "Gate",
    "GateResult",
    "Granularity",
    "PublishedSearch",
    "SearchResult",
    "activations_left",
    "list_gates",
    "published_pattern",
    "search_activations",
]
