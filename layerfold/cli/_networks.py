"""From a command's arguments to a traced network, a solution that fits it, and the recipe of a form."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from layerfold.errors import ProvenanceMismatchError

if TYPE_CHECKING:
    from layerfold.graph import Network, Segment
    from layerfold.merge import Recipe
    from layerfold.models import LoadedModel
    from layerfold.profiler.backends import Backend
    from layerfold.solver import Solution
    from layerfold.tables import LatencyTable


def add_trace_arguments(parser: argparse._ActionsContainer) -> None:
    """Add ``--exclude`` and ``--merge-pooling``; trace with ``trace_of``."""
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NAME",
        help="a module whose convs stay as they are, with all below it; may be given again",
    )
    parser.add_argument(
        "--merge-pooling",
        action="store_true",
        help="take average pooling over fixed windows as layers, which may be merged with convs",
    )


def trace_of(arguments: argparse.Namespace, loaded: LoadedModel, *, leads_to_network: bool = True) -> Network:
    """Trace a loaded model at its input shape.

    Args:
        leads_to_network: False for a command that only describes or times it.

    Raises:
        UsageError: what leads to a network must answer each image by itself, and this model does not.
        UnsupportedGraphError: it cannot be traced.
    """
    from layerfold.graph import example_images, trace_network
    from layerfold.graph.alone import check_alone

    if leads_to_network:
        check_alone(loaded.module, example_images((2, *loaded.input_shape)))
    example = example_images((1, *loaded.input_shape))
    return trace_network(loaded.module, example, arguments.exclude, merge_pooling=arguments.merge_pooling)


def recipe_of(arguments: argparse.Namespace, loaded: LoadedModel, net: Network, solution: Solution) -> Recipe:
    """Return how the forms of this model and solution are built again.

    A solution written by hand names no network. The recipe does, so that a form is not built from another one later.
    """
    from layerfold.merge import Recipe

    return Recipe(
        model=loaded.source,
        num_classes=arguments.num_classes,
        # As `load_model_of` passes it on: only an input that was asked for says anything of the channels.
        in_channels=None if arguments.input is None else loaded.input_shape[0],
        input_shape=loaded.input_shape,
        exclude=tuple(arguments.exclude),
        merge_pooling=arguments.merge_pooling,
        solution=replace(solution, network_hash=net.hash),
    )


def candidates_of(arguments: argparse.Namespace, net: Network, loaded: LoadedModel) -> list[Segment]:
    """Return the candidates within ``--max-kernel``, ``--max-growth`` and ``--stop-at-strides``.

    With ``--drop-layers`` options without some of a segment's layers follow behind the others.
    """
    from layerfold.graph import layer_norms

    if arguments.drop_layers and has_random_weights(arguments):
        print(
            "layerfold: note: no --weights, so random weights decide which layers --drop-layers keeps: latency "
            "is the same, but importances will be of those layers",
            file=sys.stderr,
        )
    return net.candidates(
        stop_at_strides=arguments.stop_at_strides,
        max_kernel=arguments.max_kernel,
        max_growth=arguments.max_growth,
        layer_norms=layer_norms(loaded.module, net) if arguments.drop_layers else None,
    )


def add_candidate_arguments(parser: argparse.ArgumentParser, *, max_growth: float | None) -> None:
    """Add the limits on what may be merged."""
    group = parser.add_argument_group("candidates")
    add_limit_arguments(group, max_growth=max_growth)
    group.add_argument(
        "--stop-at-strides",
        action="store_true",
        help="the published restriction: nothing merges further than one layer past a strided one",
    )
    add_drop_argument(group)


def add_limit_arguments(group: argparse._ArgumentGroup, *, max_growth: float | None) -> None:
    """Add ``--max-kernel`` and ``--max-growth``."""
    from layerfold.cli._options import above, whole

    group.add_argument(
        "--max-kernel",
        type=whole(1),
        default=15,
        metavar="K",
        help="largest kernel of a merged conv (default: %(default)s)",
    )
    group.add_argument(
        "--max-growth",
        type=above(0),
        default=max_growth,
        metavar="X",
        help="most multiply-adds of a merged conv, as a multiple of what it replaces (default: "
        f"{'no limit' if max_growth is None else max_growth})",
    )


def add_drop_argument(group: argparse._ArgumentGroup) -> None:
    """Add ``--drop-layers``."""
    group.add_argument(
        "--drop-layers",
        action="store_true",
        help="also options in which layers that keep the shape, or whole residual branches, are left "
        "out; which ones stay goes by the weights (LayerMerge)",
    )


def check_table(net: Network, table: LatencyTable, path: str) -> None:
    """Refuse a latency table of another network.

    Raises:
        ProvenanceMismatchError: names both.
    """
    known = table.provenance.network_hash
    if known and known != net.hash:
        raise ProvenanceMismatchError(
            f"{path}: was measured for a network of hash {known}, this one has {net.hash}; "
            "profile this model with the same --input and --exclude"
        )


def check_precision(table: LatencyTable, path: str, backend: Backend) -> None:
    """Refuse a latency table of another precision than what is to be measured.

    Raises:
        ProvenanceMismatchError: names both.
    """
    known = table.provenance.dtype
    if known and known != backend.precision:
        raise ProvenanceMismatchError(
            f"{path}: was measured in {known}, and {backend.name} is to measure in {backend.precision}; give "
            f"--precision {known}, or a table in {backend.precision}"
        )


def note_random_weights(arguments: argparse.Namespace) -> None:
    """Say so on stderr where a model of a library starts from random weights."""
    if has_random_weights(arguments):
        print("layerfold: note: no --weights, so the model's weights are random", file=sys.stderr)


def note_needless(net: Network, solution: Solution) -> None:
    """Say so on stderr where a solution, by hand or of another solver, removes activations for nothing."""
    from layerfold.graph.activations import needlessly_removed

    found = needlessly_removed(net, solution.act_pos, solution.merge_pos)
    if found:
        positions = ",".join(map(str, found[:20])) + (", ..." if len(found) > 20 else "")
        print(
            f"layerfold: note: the solution removes the activations at {positions}, where merging stops all the "
            "same: that saves no time, add them to act_pos",
            file=sys.stderr,
        )


def has_random_weights(arguments: argparse.Namespace) -> bool:
    """Say whether nothing gives the model weights: a factory of one's own may load some."""
    return arguments.weights is None and str(arguments.model).startswith(("timm:", "torchvision:"))
