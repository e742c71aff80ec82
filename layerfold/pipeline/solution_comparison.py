"""Several solutions on one device: what each was to take, what it takes, and what it is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerfold.data import ImageData
from layerfold.errors import MissingEntryError, UsageError
from layerfold.export import export_onnx
from layerfold.files import JsonObject, as_json, csv_text, write_text
from layerfold.finetune import check_answers, evaluate_network, first_images
from layerfold.graph import Network
from layerfold.graph.same_model import network_call
from layerfold.merge import build_train_form, merge_network
from layerfold.options import CompareOptions
from layerfold.pipeline.outcomes import copied
from layerfold.profiler import benchmark_networks
from layerfold.profiler.backends import Backend
from layerfold.profiler.benchmark import MeasuredOn
from layerfold.profiler.verify import example_input_of
from layerfold.progress import progress_bar
from layerfold.report.solutions_plot import ComparedPoint, comparison_plot
from layerfold.settings import takes_settings
from layerfold.solver import Solution, importance_of
from layerfold.tables import ImportanceTable, LatencyTable

ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class ComparedNetwork:
    """One network of a comparison.

    Attributes:
        name: as given; ``original`` for the first.
        predicted_ms: by the latency table, else what the solution says; None if unknown.
        measured_ms, low_ms, high_ms: median of one forward pass and its 95 % interval.
        ratio, ratio_low, ratio_high: latency relative to the original, paired round by round, with its interval.
        is_settled: whether the interval reached its target.
        importance: in points; None if unknown.
        accuracy_pct: top-1 on the test images, 0..100; None if unknown.
        agreement_pct: answers that are the original's, where the test images have no labels; else None.
        num_activations: activations in chains.
        num_convs, num_params, macs: of the network that was measured; multiply-adds of one image.
        note: what the table could not say, and why.
    """

    name: str
    predicted_ms: float | None
    measured_ms: float
    low_ms: float
    high_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    is_settled: bool
    importance: float | None
    accuracy_pct: float | None
    agreement_pct: float | None = None
    num_activations: int
    num_convs: int
    num_params: int
    macs: int
    note: str = ""

    @property
    def speedup(self) -> float:
        """Speed-up over the original."""
        return 1 / self.ratio

    @property
    def prediction_error(self) -> float | None:
        """(predicted - measured) / measured, or None."""
        return None if self.predicted_ms is None else self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, kw_only=True)
class SolutionComparison:
    """Solutions measured in turns on one device; the original comes first.

    Attributes:
        networks: in the order given.
        provenance: backend, versions, device, options, batch.

    Example:
        >>> comparison["ours"].speedup
        1.25
        >>> comparison.rows()[0]["name"]
        'original'
        >>> comparison.write_csv("comparison.csv")
    """

    networks: tuple[ComparedNetwork, ...]
    provenance: MeasuredOn

    def __getitem__(self, name: str) -> ComparedNetwork:
        return next(each for each in self.networks if each.name == name)

    def rows(self) -> list[JsonObject]:
        """Return one flat dict per network."""
        return [
            {**asdict(each), "speedup": each.speedup, "prediction_error": each.prediction_error}
            for each in self.networks
        ]

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold."""
        return {"schema": 1, "networks": self.rows(), "provenance": as_json(self.provenance)}

    def write_csv(self, path: str | Path) -> None:
        """Write one row per network, by an atomic replace; what is unknown is empty."""
        names = [each.name for each in fields(ComparedNetwork)]
        names[-1:] = ["speedup", "prediction_error", names[-1]]
        write_text(Path(path), csv_text(names, [[row[name] for name in names] for row in self.rows()]))

    def plot(self, path: str | Path, *, title: str = "") -> Path:
        """Draw accuracy against measured latency (without any accuracy, importance, or latency alone).

        Args:
            path: a .png, .svg or .pdf file.
            title: the heading.
        """
        points = [copied(ComparedPoint, each) for each in self.networks]
        return comparison_plot(points, path, title=title)


@takes_settings(options=CompareOptions)
@network_call
def compare_solutions(
    model: nn.Module,
    net: Network,
    solutions: Mapping[str, Solution],
    backend: str | Backend = "onnxruntime",
    *,
    options: CompareOptions | None = None,
    networks: Mapping[str, nn.Module] | None = None,
    data: ImageData | None = None,
    progress: bool = True,
    **settings: Any,
) -> SolutionComparison:
    """Merge a network by several solutions and measure all of them in turns with the original.

    Args:
        model: the module that ``net`` was traced from; left untouched.
        net: its description.
        solutions: name -> solution, whatever made it: the solver, a search, a published pattern, a hand.
        backend: a backend's name, or one made with :func:`layerfold.profiler.get_backend` (then ``device`` and
            ``threads`` are its own).
        options, settings: see :class:`CompareOptions`; a setting given by name takes the place of that of ``options``.
        networks: name -> that solution's finetuned network in deploy form. It is measured and scored in place of the
            model's own weights merged, which are not scored.
        data: the original and ``networks`` are scored on its test split.
        progress: show a bar on stderr.

    Raises:
        UsageError: no solutions, or a name that is not among them; with ``data``, a model that gives no logits.
        SolutionError: a solution that does not fit the network; names it.
        DataError: images with more classes than the model has.

    Example:
        >>> by_hand = lf.Solution(act_pos=[3], merge_pos=[3])
        >>> found = lf.compare_solutions(model, net, {"solver": solution, "by hand": by_hand}, progress=False)
        >>> [(each.name, each.num_convs) for each in found.networks]
        [('original', 3), ('solver', 2), ('by hand', 1)]
        >>> f"{found['solver'].speedup:.2f} times as fast"
        '... times as fast'
    """
    options = options or CompareOptions()
    networks, known = networks or {}, options.accuracies_pct or {}
    latency, importance = options.latency, options.importance
    _check_names(solutions, networks, known)
    if data is not None:
        check_answers(model, first_images(data), num_classes=data.num_classes if data.is_labelled else None)
    example = example_input_of(net, options.batch)
    # Merging, exporting and scoring each network, then one measurement.
    with progress_bar("compare: prepare", len(solutions) + 2, enabled=progress) as bar:
        modules = {ORIGINAL: model}
        onnx = {ORIGINAL: export_onnx(model, example)}
        bar.advance()
        for name, solution in solutions.items():
            with _named(name):
                modules[name] = networks[name] if name in networks else _merged(model, net, solution)
                onnx[name] = export_onnx(modules[name], example)
            bar.advance()
        bar.describe("compare: measure")
        report = benchmark_networks(onnx, example, backend, options)
        bar.advance()
    accuracies: dict[str, float | None] = dict(known)
    agreements: dict[str, float | None] = {}
    if data is not None:
        scored = [ORIGINAL, *networks]
        with progress_bar("compare: score", len(scored), enabled=progress) as bar:
            for name in scored:
                scores = evaluate_network(
                    modules[name], data.split("test"), teacher=None if data.is_labelled else model
                )
                agreements[name] = scores.agreement_pct
                if data.is_labelled:
                    accuracies[name] = scores.accuracy_pct
                bar.advance()
    original = Solution(
        act_pos=net.original_act_pos,
        merge_pos=tuple(range(1, len(net.layers) + 1)),
        predicted_ms=None if latency is None else latency.original_ms,
        importance=0.0,
    )
    found = []
    for name, solution in {ORIGINAL: original, **solutions}.items():
        measured, counts = report[name], _counts_of(modules[name], example)
        notes: list[str] = []
        found.append(
            ComparedNetwork(
                name=name,
                predicted_ms=_predicted_ms(solution, latency, notes),
                measured_ms=measured.median_ms,
                low_ms=measured.low_ms,
                high_ms=measured.high_ms,
                ratio=measured.ratio,
                ratio_low=measured.ratio_low,
                ratio_high=measured.ratio_high,
                is_settled=measured.is_settled,
                importance=0.0 if name == ORIGINAL else _importance(net, solution, importance, notes),
                accuracy_pct=accuracies.get(name),
                agreement_pct=agreements.get(name),
                num_activations=len(_activations(net, solution)),
                num_convs=counts["convs"],
                num_params=counts["params"],
                macs=counts["macs"],
                note="; ".join(notes),
            )
        )
    return SolutionComparison(networks=tuple(found), provenance=report.provenance)


def _check_names(
    solutions: Mapping[str, Solution], networks: Mapping[str, nn.Module], known: Mapping[str, float]
) -> None:
    if not solutions:
        raise UsageError("solutions is empty; give at least one, as name -> solution")
    if ORIGINAL in solutions:
        raise UsageError(f"solutions: {ORIGINAL!r} is the name of the unmodified network; name the solution otherwise")
    for argument, names in (("networks", networks), ("accuracies_pct", known)):
        for name in names:
            if name not in solutions and (argument, name) != ("accuracies_pct", ORIGINAL):
                raise UsageError(f"{argument}: {name!r} is none of the solutions {', '.join(solutions)}")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which solution an error is about."""
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{name}: {error}") from error


def _merged(model: nn.Module, net: Network, solution: Solution) -> nn.Module:
    # Only the structure counts for latency: no need to compare each merged conv with its segment here.
    return merge_network(build_train_form(model, net, solution).eval(), tolerance=None)


def _activations(net: Network, solution: Solution) -> set[int]:
    ends = {chain.end for chain in net.chains}
    return set(solution.act_pos) - ends | {end for end in ends if net.has_activation(end)}


def _predicted_ms(solution: Solution, latency: LatencyTable | None, notes: list[str]) -> float | None:
    if latency is None:
        return solution.predicted_ms
    try:
        return latency.predict_ms(solution)
    except MissingEntryError as error:
        notes.append(f"no prediction: {error}")
        return None


def _importance(net: Network, solution: Solution, importance: ImportanceTable | None, notes: list[str]) -> float | None:
    if importance is None:
        return solution.importance
    chains = tuple((chain.start, chain.end) for chain in net.chains)
    ends = frozenset(chain.end for chain in net.chains if net.has_activation(chain.end))
    try:
        return importance_of(solution, importance, chains, ends)
    except MissingEntryError as error:
        notes.append(f"no importance: {error}")
        return None


@torch.no_grad()
def _counts_of(module: nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, int]:
    """Count the convs that run, their multiply-adds and those of linear layers for one image, and parameters."""
    found = {"convs": 0, "macs": 0, "params": sum(parameter.numel() for parameter in module.parameters())}

    def count(part: nn.Module, _: Any, output: Any) -> None:
        if isinstance(part, nn.Conv2d):
            found["convs"] += 1
            taps = part.kernel_size[0] * part.kernel_size[1] * (part.in_channels // part.groups)
        else:
            assert isinstance(part, nn.Linear)
            taps = part.in_features
        found["macs"] += int(output[0].numel()) * taps

    hooks = [part.register_forward_hook(count) for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    try:
        weight = next(module.parameters())
        module(*(each[:1].to(weight) for each in example))
    finally:
        for hook in hooks:
            hook.remove()
    return found
