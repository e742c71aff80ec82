"""Sums of several branches, reordered so that the branch with most convs comes first.

``a + (b + c)`` becomes ``(a + b) + c``: a chain adds its residuals one after the other to its main branch.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from layerfold.graph.rewrites.constants import shape_of

if TYPE_CHECKING:
    from layerfold.graph.rewrites import Install

ADD_TARGETS = (operator.add, operator.iadd, torch.add, "add", "add_")


def adds_feature_maps(node: fx.Node) -> bool:
    """Say whether a node adds two different feature maps of one shape, without broadcast or ``alpha``."""
    if node.op not in ("call_function", "call_method") or node.target not in ADD_TARGETS:
        return False
    if node.kwargs or len(node.args) != 2 or node.args[0] is node.args[1]:
        return False
    first, second = (shape_of(arg) for arg in node.args)
    return len(first) == 4 and first == second


def conv_depths(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, tuple[int, int]]:
    """Return, for each node, the most (convs, other modules) on any path to it from an input."""
    depths: dict[fx.Node, tuple[int, int]] = {}
    for node in graph.nodes:
        convs, others = max((depths[before] for before in node.all_input_nodes), default=(0, 0))
        is_module = node.op == "call_module"
        is_conv = is_module and isinstance(modules[str(node.target)], nn.Conv2d)
        depths[node] = convs + is_conv, others + (is_module and not is_conv)
    return depths


def rewrite_sums(module: fx.GraphModule) -> Iterator[Install]:
    """Reorder each tree of additions of three or more feature maps whose partial sums nobody else reads."""
    modules = dict(module.named_modules())
    depths = conv_depths(module.graph, modules)
    sums = [node for node in module.graph.nodes if adds_feature_maps(node)]
    for node in sums:
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        if reader is not None and reader in sums:
            continue  # part of a larger tree
        adds, terms = _tree(node)
        if len(terms) < 3:
            continue
        main = max(terms, key=lambda term: (depths[term], _kernel(term, modules), -terms.index(term)))
        rest = [term for term in terms if term is not main]
        # The deepest of the rest is added last: what is nested inside it was added before.
        rest.sort(key=lambda term: depths[term], reverse=True)
        for number, total in enumerate(_rebuild(node, adds, [main, *rest]), start=2):
            depths[total] = max(depths[term] for term in [main, *rest][:number])  # a term of a later tree, perhaps
    yield from ()


def _tree(root: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """Return the additions below ``root`` that only it reads, itself included, and what they add, in order."""
    adds: list[fx.Node] = [root]
    terms: list[fx.Node] = []
    for arg in root.args:
        assert isinstance(arg, fx.Node)
        if adds_feature_maps(arg) and len(arg.users) == 1:
            inner_adds, inner_terms = _tree(arg)
            adds, terms = adds + inner_adds, terms + inner_terms
        else:
            terms.append(arg)
    return adds, terms


def _kernel(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    while node.op == "call_module" and len(node.all_input_nodes) == 1:
        module = modules[str(node.target)]
        if isinstance(module, nn.Conv2d):
            return int(module.kernel_size[0]) * int(module.kernel_size[1])
        node = node.all_input_nodes[0]
    return 0


def _rebuild(root: fx.Node, adds: list[fx.Node], terms: list[fx.Node]) -> list[fx.Node]:
    """Write the sum of ``terms`` from left to right in place of the tree, before its root; return its additions."""
    total = terms[0]
    graph = root.graph
    totals = []
    for term in terms[1:]:
        with graph.inserting_before(root):
            new = graph.call_function(operator.add, (total, term))
        new.meta = dict(root.meta)
        total = new
        totals.append(new)
    root.replace_all_uses_with(total)
    for add in adds:  # from the root down: each is unread when its turn comes
        graph.erase_node(add)
    return totals
