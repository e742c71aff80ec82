"""The examples in the docstrings of the public names run, and give what they show.

An example shows what a user does first, in a few lines. What it needs beside `lf`, `torch` and `nn` is prepared here,
once for all examples, by a fixture of the name that the example uses:

- `model`, three convs with BatchNorm and ReLU for images of 8 x 8; `net`, its description; `data`, 32 images of noise;
- `latency` and `importance`, made-up tables of all its segments; `solution`, the best for 3.5 ms; `merged`, the network
  that it leads to; `comparison`, made-up measurements of it;
- in the working folder: `images/`, a folder of images of two classes; `own.py`, a file with a factory of a model;
  `original.onnx` and `merged.onnx`.

Where an example measures, it measures for an instant: how exact that is is for other tests.
"""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import fx, nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.pipeline.solution_comparison import ComparedNetwork
from layerfold.profiler.timing.measurement import MeasurePolicy

_NAMES = [name for name in lf.__all__ if inspect.isroutine(getattr(lf, name)) or inspect.isclass(getattr(lf, name))]
_PREPARED = ("model", "net", "data", "latency", "importance", "solution", "merged", "comparison")
_FACTORY = """from torch import nn


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def _examples(name: str) -> list[doctest.DocTest]:
    """Return the examples in the docstring of a public name, and in those of its methods."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [each for each in finder.find(getattr(lf, name), name, module=False, globs={}) if each.examples]


def _names_in(test: doctest.DocTest) -> set[str]:
    """Return the names that the examples of one docstring read or set."""
    nodes = (node for each in test.examples for node in ast.walk(ast.parse(each.source)))
    return {node.id for node in nodes if isinstance(node, ast.Name)}


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch) -> Path:
    """The working folder of all examples, in which no measurement takes longer than an instant."""
    for field, seconds in (("cap_s", 0.02), ("warmup_cap_s", 0.01)):
        # A property goes before the values that policies already have.
        instant = property(lambda _, seconds=seconds: seconds, lambda _, value: None)
        monkeypatch_module.setattr(MeasurePolicy, field, instant)
    folder = tmp_path_factory.mktemp("examples")
    monkeypatch_module.chdir(folder)
    monkeypatch_module.setenv("LAYERFOLD_CACHE", str(folder / "cache"))
    (folder / "own.py").write_text(_FACTORY)
    for split in ("train", "val"):
        for blue, name in ((200, "cat"), (0, "dog")):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(8):
                Image.new("RGB", (8, 8), (20 * number, 0, blue)).save(folder / f"images/{split}/{name}/{number}.png")
    return folder


@pytest.fixture(scope="module")
def model() -> nn.Module:
    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*layer(3, 8), *layer(8, 8), *layer(8, 8), *head).eval()


@pytest.fixture(scope="module")
def net(model: nn.Module) -> lf.Network:
    return lf.trace_network(model, torch.zeros(1, 3, 8, 8))


@pytest.fixture(scope="module")
def data() -> lf.ImageData:
    images = TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 2)
    return lf.ImageData(name="noise", num_classes=2, input_shape=(3, 8, 8), train=images, holdout=images, test=images)


@pytest.fixture(scope="module")
def latency(net: lf.Network) -> lf.LatencyTable:
    found = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 2): 1.5, (1, 3): 1.2, (0, 3): 1.6}
    return lf.LatencyTable(
        [lf.LatencyEntry(start=start, end=end, latency_ms=ms) for (start, end), ms in found.items()],
        provenance=lf.Provenance(network_hash=net.hash, chains=((0, 3),), fixed_ms=1.0),
    )


@pytest.fixture(scope="module")
def importance(net: lf.Network) -> lf.ImportanceTable:
    found = {(0, 1): 0.0, (1, 2): 0.0, (2, 3): 0.0, (0, 2): -2.0, (1, 3): -1.0, (0, 3): -4.0}
    return lf.ImportanceTable(
        [
            lf.ImportanceEntry(start=start, end=end, start_act=1, end_act=1, importance=points)
            for (start, end), points in found.items()
        ],
        provenance=lf.Provenance(network_hash=net.hash, chains=((0, 3),)),
    )


@pytest.fixture(scope="module")
def solution(latency: lf.LatencyTable, importance: lf.ImportanceTable) -> lf.Solution:
    return lf.solve_frontier(latency, importance).at(budget_ms=3.5)


@pytest.fixture(scope="module")
def merged(model: nn.Module, net: lf.Network, solution: lf.Solution) -> fx.GraphModule:
    return lf.merge_network(lf.build_train_form(model, net, solution))


@pytest.fixture(scope="module")
def comparison() -> lf.SolutionComparison:
    def network(name: str, latency_ms: float, num_convs: int, accuracy_pct: float) -> ComparedNetwork:
        ratio = latency_ms / 4
        return ComparedNetwork(
            name=name,
            predicted_ms=latency_ms,
            measured_ms=latency_ms,
            low_ms=latency_ms - 0.1,
            high_ms=latency_ms + 0.1,
            ratio=ratio,
            ratio_low=ratio - 0.01,
            ratio_high=ratio + 0.01,
            is_settled=True,
            importance=0.0,
            accuracy_pct=accuracy_pct,
            num_activations=num_convs,
            num_convs=num_convs,
            num_params=1000,
            macs=100_000,
        )

    networks = (network("original", 4.0, 3, 92.0), network("ours", 3.2, 2, 91.5))
    return lf.SolutionComparison(networks=networks, provenance={})


@pytest.fixture(scope="module")
def files(model: nn.Module, merged: fx.GraphModule, workplace: Path) -> None:
    """`original.onnx` and `merged.onnx` in the working folder."""
    for name, network in (("original", model), ("merged", merged)):
        lf.export_network(network, workplace, name=name, example_input=torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", _NAMES)
def test_examples_of_a_public_name_give_what_they_show(name: str, request: pytest.FixtureRequest) -> None:
    tests = _examples(name)
    public = getattr(lf, name)
    assert tests or (inspect.isclass(public) and issubclass(public, Exception)), "a public name without an example"
    for test in tests:
        test.globs = {"lf": lf, "torch": torch, "nn": nn}
        for used in sorted(_names_in(test) & set(_PREPARED)):
            test.globs[used] = request.getfixturevalue(used)
        if any("merged.onnx" in each.source for each in test.examples):
            request.getfixturevalue("files")
        said: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        result = runner.run(test, out=said.append, clear_globs=False)
        assert result.failed == 0, "".join(said)


def test_nothing_is_prepared_that_no_example_needs() -> None:
    used = set().union(*(_names_in(test) for name in _NAMES for test in _examples(name)))
    assert set(_PREPARED) <= used
