"""Other ways to make a network faster, for comparison at a measured speed-up.

``paper`` and ``uniform`` choose a solution; ``prune`` gives a smaller network (Torch-Pruning: Fang et al., DepGraph,
CVPR 2023) with each of ``ROUNDINGS`` for ``round_to``, of which ``best_pruning`` takes the best: channels that are no
multiple of what a processor's kernels compute at once are slow. The published checkpoints of Dynamic Structure Pruning
(Park et al., AAAI 2023) are taken as they are.
"""

from __future__ import annotations

import copy
import io
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import shared_path
from torch import nn

import layerfold as lf
from layerfold.search import BestMerging
from tests.oracles.published import fill_table

EXAMPLE = torch.zeros(1, 3, 32, 32)
DSP = {name: tuple(f"{name}_g{groups}" for groups in (2, 3, 4)) for name in ("resnet20", "resnet56")}
"""Checkpoints by network."""

DSP_MEAN, DSP_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
ROUNDINGS = (None, 8, 16)
"""Of Torch-Pruning's ``round_to``: the channels that stay are a multiple of it, or any number."""

_LARGEST_SHARE, _SHARE_STEP, _FINEST_SHARE = 0.95, 0.05, 0.015
"""Of filters: the most that go, the steps in which rounded ones are tried, and where the bisection ends."""

_PRECISION = 2000
"""Steps of time per millisecond, of the paper's programme: networks here take less than a millisecond."""


def paper(latency: lf.LatencyTable, importance: lf.ImportanceTable, budget_ms: float) -> lf.Solution:
    """Return the choice of Kim et al. 2023: merging only, time discretised (section 4), from finetuned importances.

    Args:
        latency: without dropped layers, by the published restriction at strides.
        importance: by ``finetune``, for the same segments.
        budget_ms: end to end; less the fixed part and divided by the scale it is their T0.

    Raises:
        lf.InfeasibleBudgetError: nothing fits.
    """
    provenance = latency.provenance
    entries = {(each.start, each.end): each.latency_ms for each in latency.entries}
    segments_ms = (budget_ms - (provenance.fixed_ms or 0.0)) / provenance.scale
    num_layers = max(end for _, end in entries)
    importances = {key: entry.importance for key, entry in importance.by_key.items() if len(key) == 4}
    found = None
    if segments_ms > 0:
        found = fill_table(entries, importances, num_layers, segments_ms, _PRECISION).at(segments_ms)
    if found is None:
        least_ms = lf.solve_frontier(latency, importance).least_ms
        raise lf.InfeasibleBudgetError(f"budget {budget_ms:.6g} ms", budget_ms=budget_ms, least_ms=least_ms)
    _, _, acts, merges = found
    return lf.Solution(act_pos=acts, merge_pos=merges)


def uniform(net: lf.Network, latency: lf.LatencyTable, budget_ms: float) -> lf.Solution:
    """Return the least blocks, evenly spread, that must go: merged where that is enough, else dropped.

    A block is what a residual goes around. Every second one is the middle of the range.

    Raises:
        lf.InfeasibleBudgetError: not even all of them are enough.
    """
    merging = BestMerging(net, latency)
    kernels = {(each.start, each.end): each.merged for each in latency.entries if each.kept == ()}
    blocks = [(each.src, each.dst) for each in net.residuals]
    least_ms = math.inf
    for spans, is_dropped in ((blocks, False), ([each for each in blocks if each in kernels], True)):
        for count in range(1, len(spans) + 1):
            chosen = [spans[int((index + 0.5) * len(spans) / count)] for index in range(count)]
            inside = {position for start, end in chosen for position in range(start + 1, end)}
            acts = tuple(position for position in net.original_act_pos if position not in inside)
            if is_dropped:
                stops = tuple(position for position in range(1, len(net.layers) + 1) if position not in inside)
                gone = {layer for start, end in chosen for layer in range(start + 1, end + 1)}
                kept = tuple(layer for layer in range(1, len(net.layers) + 1) if layer not in gone)
                solution = lf.Solution(act_pos=acts, merge_pos=stops, kept_layers=kept)
            else:
                solution = merging.solution(acts, model="", budget_ms=budget_ms)
            predicted_ms = latency.predict_ms(solution)
            least_ms = min(least_ms, predicted_ms)
            if predicted_ms <= budget_ms:
                return solution
    raise lf.InfeasibleBudgetError(f"budget {budget_ms:.6g} ms", budget_ms=budget_ms, least_ms=least_ms)


def prune(model: nn.Module, share: float, *, is_global: bool, round_to: int | None = None) -> nn.Module:
    """Return a copy of which the share of filters of least group magnitude (L2) is gone, by Torch-Pruning.

    The classifier keeps its outputs. In a CIFAR ResNet, whose shortcuts pad channels, only the convs inside blocks
    lose filters, as published work does it.

    Args:
        share: of the filters of each layer.
        is_global: rank filters over the whole network in place of each layer's own.
        round_to: the channels that stay are a multiple of it; None for any number.
    """
    import torch_pruning

    pruned = copy.deepcopy(model).eval()
    whole = [module for module in pruned.modules() if isinstance(module, nn.Linear)]
    if hasattr(pruned, "layer1"):
        whole += [module for name, module in pruned.named_modules() if name == "conv1" or name.endswith(".conv2")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            pruned,
            EXAMPLE,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            max_pruning_ratio=_LARGEST_SHARE,
            ignored_layers=whole,
            global_pruning=is_global,
            round_to=round_to,
        ).step()
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def best_pruning(
    model: nn.Module, speedup: float, measure: Callable[[nn.Module], float], *, is_global: bool
) -> dict[str, Any]:
    """Return the pruning that is as fast as asked, of those by each of ``ROUNDINGS`` the one that keeps most.

    What it keeps is the share of the convs' squared weights that is still there: the magnitude by which filters are
    chosen. So a number of channels that suits the processor pays where fewer filters have to go for the same latency.

    Args:
        model: the original.
        speedup: to reach.
        measure: returns a network's measured speed-up.
        is_global: see ``prune``.

    Returns:
        ``reached``; ``share``, ``round_to`` and ``speedup`` where it is, else the ``most`` that is; ``tried``, what
        each rounding came to.
    """
    tried = []
    for round_to in ROUNDINGS:
        share, found = _share_for(model, speedup, measure, is_global=is_global, round_to=round_to)
        pruned = None if share is None else prune(model, share, is_global=is_global, round_to=round_to)
        kept = None if pruned is None else _squared_weights(pruned) / _squared_weights(model)
        tried.append({"round_to": round_to, "share": share, "speedup": found, "kept": kept})
    reached = [each for each in tried if each["kept"] is not None]
    if not reached:
        return {"reached": False, "most": max(each["speedup"] for each in tried), "tried": tried}
    best = max(reached, key=lambda each: each["kept"])
    return {"reached": True, **{key: best[key] for key in ("share", "round_to", "speedup")}, "tried": tried}


def _share_for(
    model: nn.Module, speedup: float, measure: Callable[[nn.Module], float], *, is_global: bool, round_to: int | None
) -> tuple[float | None, float]:
    """Return the least share of filters whose network is as fast as asked, and its speed-up.

    More filters make a faster network, but not where channels are rounded: Torch-Pruning rounds what stays down, and
    leaves a layer whole of which nothing would stay. So shares are then tried from the least up to one that is fast
    enough, before the bisection.

    Returns:
        None and the largest speed-up where no share is fast enough.
    """

    def measured(share: float) -> float:
        return measure(prune(model, share, is_global=is_global, round_to=round_to))

    low, most = 0.0, 0.0
    first = _LARGEST_SHARE if round_to is None else _SHARE_STEP
    steps = round((_LARGEST_SHARE - first) / _SHARE_STEP) + 1
    for high in (first + step * _SHARE_STEP for step in range(steps)):
        best = measured(high)
        if best >= speedup:
            break
        low, most = high, max(most, best)
    else:
        return None, most
    while high - low > _FINEST_SHARE:
        middle = (low + high) / 2
        found = measured(middle)
        if found >= speedup:
            high, best = middle, found
        else:
            low = middle
    return high, best


def _squared_weights(model: nn.Module) -> float:
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return sum(float(conv.weight.detach().double().square().sum()) for conv in convs)


def load_dsp(name: str) -> nn.Module:
    """Return a published checkpoint, in eval mode: images normalised with ``DSP_MEAN``, ``DSP_STD`` to logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = torch.jit.load(str(shared_path() / f"checkpoints/dsp/{name}.pt"), map_location="cpu")
    return model.eval()


def dsp_onnx(name: str) -> bytes:
    """Return a published checkpoint as ONNX."""

    def gather(g: Any, x: Any, index: Any, dim: Any) -> Any:
        # The exporter knows no take_along_dim; here the index has one number per channel, [1, channels, 1, 1].
        flat = g.op("Reshape", index, g.op("Constant", value_t=torch.tensor([-1])))
        return g.op("Gather", x, flat, axis_i=1)

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.register_custom_op_symbolic("aten::take_along_dim", gather, 17)
        torch.onnx.export(load_dsp(name), (EXAMPLE,), file, dynamo=False, opset_version=17)
    return _with_known_shapes(file.getvalue())


def _with_known_shapes(onnx_bytes: bytes) -> bytes:
    """Return a graph in which nothing is left that works out a shape: not every backend can."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()
