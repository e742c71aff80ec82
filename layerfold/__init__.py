"""layerfold makes a trained CNN meet a latency budget on a given device by merging convolutions.

The names below are the whole public surface. A name is looked up in its home module when it
is first used, so that ``import layerfold`` and ``layerfold --help`` start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layerfold.errors import (
    ClusterUnavailableError,
    DataError,
    DeviceUnavailableError,
    DivergenceError,
    EquivalenceError,
    ExecutorError,
    ExportError,
    FinetuneError,
    InfeasibleBudgetError,
    LayerfoldError,
    MergeError,
    MissingEntryError,
    OptionalDependencyError,
    ProfilerError,
    ProvenanceMismatchError,
    SolutionError,
    TableError,
    UnstableMeasurementError,
    UnsupportedGraphError,
    UsageError,
    WriteError,
)

if TYPE_CHECKING:
    from layerfold.data import ImageData, open_data
    from layerfold.executor import Executor
    from layerfold.export import export_network
    from layerfold.finetune import evaluate_network, finetune_network, recalibrate_batch_norm
    from layerfold.graph import Barrier, Chain, Layer, Network, Residual, Segment, layer_norms, trace_network
    from layerfold.importance import estimate_importance
    from layerfold.merge import add_fading, build_train_form, merge_network
    from layerfold.models import LoadedModel, load_model
    from layerfold.options import (
        BenchmarkOptions,
        CompareOptions,
        DataOptions,
        ExportOptions,
        FinetuneOptions,
        ImportanceOptions,
        ProfileOptions,
        QuantiseOptions,
        Refinement,
        RunOptions,
        SearchOptions,
        SolveOptions,
        VerifyOptions,
    )
    from layerfold.pipeline import CompressOptions, SolutionComparison, compare_solutions, compress_network
    from layerfold.profiler import benchmark_networks, profile_network, verify_solution
    from layerfold.quantise import quantise_network
    from layerfold.search import SearchResult, published_pattern, search_activations
    from layerfold.solver import (
        Frontier,
        Limits,
        Option,
        Solution,
        compute_optimal_latency,
        explain_point,
        extend_importance,
        solve_alternatives,
        solve_frontier,
    )
    from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance

__version__ = "0.1.0"

_HOMES = {
    "layerfold.data": ("ImageData", "open_data"),
    "layerfold.executor": ("Executor",),
    "layerfold.export": ("export_network",),
    "layerfold.finetune": ("evaluate_network", "finetune_network", "recalibrate_batch_norm"),
    "layerfold.graph": ("Barrier", "Chain", "Layer", "Network", "Residual", "Segment", "layer_norms", "trace_network"),
    "layerfold.importance": ("estimate_importance",),
    "layerfold.merge": ("add_fading", "build_train_form", "merge_network"),
    "layerfold.models": ("LoadedModel", "load_model"),
    "layerfold.options": (
        "BenchmarkOptions",
        "CompareOptions",
        "DataOptions",
        "ExportOptions",
        "FinetuneOptions",
        "ImportanceOptions",
        "ProfileOptions",
        "QuantiseOptions",
        "Refinement",
        "RunOptions",
        "SearchOptions",
        "SolveOptions",
        "VerifyOptions",
    ),
    "layerfold.pipeline": ("CompressOptions", "SolutionComparison", "compare_solutions", "compress_network"),
    "layerfold.profiler": ("benchmark_networks", "profile_network", "verify_solution"),
    "layerfold.quantise": ("quantise_network",),
    "layerfold.search": ("SearchResult", "published_pattern", "search_activations"),
    "layerfold.solver": (
        "Frontier",
        "Limits",
        "Option",
        "Solution",
        "compute_optimal_latency",
        "explain_point",
        "extend_importance",
        "solve_alternatives",
        "solve_frontier",
    ),
    "layerfold.tables": ("ImportanceEntry", "ImportanceTable", "LatencyEntry", "LatencyTable", "Provenance"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Barrier",
    "BenchmarkOptions",
    "Chain",
    "ClusterUnavailableError",
    "CompareOptions",
    "CompressOptions",
    "DataError",
    "DataOptions",
    "DeviceUnavailableError",
    "DivergenceError",
    "EquivalenceError",
    "Executor",
    "ExecutorError",
    "ExportError",
    "ExportOptions",
    "FinetuneError",
    "FinetuneOptions",
    "Frontier",
    "ImageData",
    "ImportanceEntry",
    "ImportanceOptions",
    "ImportanceTable",
    "InfeasibleBudgetError",
    "LatencyEntry",
    "LatencyTable",
    "Layer",
    "LayerfoldError",
    "Limits",
    "LoadedModel",
    "MergeError",
    "MissingEntryError",
    "Network",
    "Option",
    "OptionalDependencyError",
    "ProfileOptions",
    "ProfilerError",
    "Provenance",
    "ProvenanceMismatchError",
    "QuantiseOptions",
    "Refinement",
    "Residual",
    "RunOptions",
    "SearchOptions",
    "SearchResult",
    "Segment",
    "Solution",
    "SolutionComparison",
    "SolutionError",
    "SolveOptions",
    "TableError",
    "UnstableMeasurementError",
    "UnsupportedGraphError",
    "UsageError",
    "VerifyOptions",
    "WriteError",
    "__version__",
    "add_fading",
    "benchmark_networks",
    "build_train_form",
    "compare_solutions",
    "compress_network",
    "compute_optimal_latency",
    "estimate_importance",
    "evaluate_network",
    "explain_point",
    "export_network",
    "extend_importance",
    "finetune_network",
    "layer_norms",
    "load_model",
    "merge_network",
    "open_data",
    "profile_network",
    "published_pattern",
    "quantise_network",
    "recalibrate_batch_norm",
    "search_activations",
    "solve_alternatives",
    "solve_frontier",
    "trace_network",
    "verify_solution",
]


def __getattr__(name: str) -> Any:
    """Import the home module of a public name when the name is first used."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'layerfold' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
