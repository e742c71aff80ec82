"""Dropped layers in the forms: what is left of a network, against the network written without them."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.errors import SolutionError
from layerfold.export import export_onnx
from layerfold.merge import Recipe, add_fading, load_form, save_form
from layerfold.profiler.graphs.assemble import assemble_network
from layerfold.profiler.graphs.outside import outside_graph
from tests.torch_cpu.exactness import TOLERANCE, all_positions, randomise, relative_error


class Block(nn.Module):
    """Two 3x3 convs and a shortcut, through a conv where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out_channels, 3, stride, 1), nn.BatchNorm2d(out_channels)
        self.conv2, self.norm2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels)
        self.way: nn.Module = nn.Identity()
        if stride > 1 or channels != out_channels:
            self.way = nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.way(x))


class Small(nn.Module):
    """A stem, three blocks of which the second halves the map, and a head: layers 1, 2-3, 4-5, 6-7."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.block1, self.block2, self.block3 = Block(4, 4), Block(4, 8, 2), Block(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(torch.relu(self.stem(x)))))
        return self.head(x.mean((2, 3)))


Traced = tuple[Small, lf.Network, torch.Tensor]


@pytest.fixture(scope="module")
def traced() -> Traced:
    model = randomise(Small())
    assert isinstance(model, Small)
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = lf.trace_network(model, x)
    assert [(each.src, each.dst) for each in net.residuals] == [(1, 3), (3, 5), (5, 7)]
    return model, net, x


def solution_without(net: lf.Network, *dropped: int, merge_pos: tuple[int, ...] | None = None) -> lf.Solution:
    """Return the original's plan, or another S, without some layers."""
    stops = all_positions(net) if merge_pos is None else merge_pos
    return lf.Solution(
        act_pos=tuple(p for p in net.original_act_pos if p in stops),
        merge_pos=stops,
        kept_layers=tuple(p for p in all_positions(net) if p not in dropped),
    )


class Joined(nn.Module):
    """Three convs, activated in place; the first one's result is read by the second and by the head."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 1, 1)
        self.act0, self.act1, self.act2 = (copy.deepcopy(activation) for _ in range(3))
        self.head = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.act0(self.stem(x))
        last = self.act2(self.conv2(self.act1(self.conv1(first))))
        return self.head(torch.cat([first, last], 1).mean((2, 3)))


@pytest.mark.parametrize(
    ("activation", "again"),
    [
        (nn.ReLU(inplace=True), torch.relu),
        (nn.LeakyReLU(0.5, inplace=True), lambda x: torch.where(x > 0, x, 0.5 * x)),
        (nn.Hardswish(inplace=True), nn.functional.hardswish),
    ],
)
def test_activation_behind_a_dropped_layer_does_not_change_what_others_read(activation, again) -> None:
    model = randomise(Joined(activation))
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = lf.trace_network(model, x)
    solution = solution_without(net, 2)
    student = lf.build_train_form(model, net, solution)
    first = again(model.stem(x))
    last = again(model.conv2(again(first)))
    expected = model.head(torch.cat([first, last], 1).mean((2, 3)))
    student(x).sum().backward()
    with torch.no_grad():
        assert relative_error(student(x), expected) <= TOLERANCE
        assert relative_error(lf.merge_network(student)(x), expected) <= TOLERANCE
    assert all(part.inplace for part in (model.act0, model.act1, model.act2))


@torch.no_grad()
def outputs(traced: Traced, solution: lf.Solution) -> torch.Tensor:
    """Return the train form's output, once it is known that the deploy form's is the same."""
    model, net, x = traced
    student = lf.build_train_form(model, net, solution)
    found = student(x)
    assert relative_error(lf.merge_network(student)(x), found) <= TOLERANCE
    return found


@torch.no_grad()
def test_dropped_layer_is_the_identity(traced: Traced) -> None:
    model, net, x = traced
    found = outputs(traced, solution_without(net, 3))
    y = torch.relu(model.stem(x))
    y = torch.relu(torch.relu(model.block1.norm1(model.block1.conv1(y))) + y)
    assert relative_error(found, model.head(model.block3(model.block2(y)).mean((2, 3)))) <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("merge_pos", [(1, 2, 3, 4, 5, 6, 7), (1, 3, 4, 5, 6, 7)])
def test_branch_of_which_nothing_stays_leaves_the_identity_once(traced: Traced, merge_pos: tuple[int, ...]) -> None:
    model, net, x = traced
    found = outputs(traced, solution_without(net, 2, 3, merge_pos=merge_pos))
    y = torch.relu(model.stem(x))
    assert relative_error(found, model.head(model.block3(model.block2(y)).mean((2, 3)))) <= TOLERANCE


class Nested(nn.Module):
    """Two blocks with shortcut convs, and a shortcut conv around both: layers 1-2 and 3-4."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2 = Block(4, 6), Block(6, 4)
        self.around = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, block = self.block1(x), self.block2
        inside = block.norm2(block.conv2(torch.relu(block.norm1(block.conv1(y)))))
        return torch.relu(inside + block.way(y) + self.around(x))


@torch.no_grad()
def test_shortcuts_that_stay_keep_the_branch_around_them() -> None:
    model = randomise(Nested())
    x = torch.randn(2, 4, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = lf.trace_network(model, x)
    assert sorted((each.src, each.dst, bool(each.shortcut)) for each in net.residuals) == [
        (0, 2, True),
        (0, 4, True),
        (2, 4, True),
    ]
    solution = lf.Solution(act_pos=(2,), merge_pos=(2, 4), kept_layers=())
    assert [(each.start, each.end) for each in net.segments_of((2, 4), (1, 2, 3, 4))] == [(0, 2), (2, 4)]
    found = lf.build_train_form(model, net, solution)(x)
    y = model.block2.way(torch.relu(model.block1.way(x)))
    assert relative_error(found, torch.relu(y + model.around(x))) <= TOLERANCE


@torch.no_grad()
def test_fading_takes_what_is_left_of_a_branch_that_is_gone(traced: Traced) -> None:
    model, net, x = traced
    solution = lf.Solution(act_pos=(1, 5, 7), merge_pos=(1, 2, 5, 6, 7), kept_layers=(1, 4, 5, 6, 7))
    form = lf.build_train_form(model, net, solution).eval()
    expected = lf.build_train_form(model, net, solution).eval()(x)
    assert add_fading(form, model, net, solution) == 1  # of layer 6; a segment without some layers has none to fade
    assert torch.equal(form(x), expected)


@torch.no_grad()
def test_branch_that_changes_the_shape_leaves_its_shortcut_alone(traced: Traced) -> None:
    model, net, x = traced
    found = outputs(traced, solution_without(net, 4, 5))
    y = torch.relu(model.block2.way(model.block1(torch.relu(model.stem(x)))))
    assert relative_error(found, model.head(model.block3(y).mean((2, 3)))) <= TOLERANCE


@torch.no_grad()
def test_all_but_stem_and_shortcut_can_go(traced: Traced) -> None:
    model, net, x = traced
    solution = solution_without(net, 2, 3, 4, 5, 6, 7, merge_pos=(1, 3, 5, 7))
    student = lf.build_train_form(model, net, solution)
    merged = lf.merge_network(student)
    expected = model.head(torch.relu(model.block2.way(torch.relu(model.stem(x)))).mean((2, 3)))
    assert relative_error(student(x), expected) <= TOLERANCE
    assert relative_error(merged(x), expected) <= TOLERANCE
    assert [type(each).__name__ for each in merged.modules()].count("Conv2d") == 2
    # The same activation twice in a row is one.
    assert sum(node.target in (torch.relu, "relu") for node in merged.graph.nodes) == 2


def test_merging_with_drops_is_exact_across_blocks(traced: Traced) -> None:
    _, net, _ = traced
    for merge_pos, dropped in [((7,), (3,)), ((7,), (2, 3, 6)), ((1, 7), (2, 3, 4, 5, 7)), ((1, 5, 7), (3, 5, 6, 7))]:
        outputs(traced, solution_without(net, *dropped, merge_pos=merge_pos))


def test_identity_segment_is_no_module_in_either_form(traced: Traced) -> None:
    model, net, _ = traced
    student = lf.build_train_form(model, net, solution_without(net, 6, 7, merge_pos=(1, 2, 3, 4, 5, 7)))
    names = {name for name, _ in student.named_modules()}
    assert not any(name.startswith(("block3", "segment_5_7")) for name in names)
    assert student.meta.get("merged_convs") is None
    assert lf.merge_network(student).meta["merged_convs"] == {}


@pytest.mark.parametrize("dropped", [(3,), (2, 3), (2, 3, 4, 5), (4, 5, 7)])
def test_network_assembled_for_timing_has_the_convs_of_the_deploy_form(
    traced: Traced, dropped: tuple[int, ...]
) -> None:
    model, net, x = traced
    solution = solution_without(net, *dropped, merge_pos=(1, 3, 5, 7))
    written = onnx.load_from_string(
        assemble_network(net, outside_graph(model, net), solution.act_pos, solution.merge_pos, dropped)
    )
    merged = lf.merge_network(lf.build_train_form(model, net, solution)).float()
    exported = onnx.load_from_string(export_onnx(merged, x[:1].float()))
    counts = [
        {kind: [node.op_type for node in graph.graph.node].count(kind) for kind in ("Conv", "Add", "Relu")}
        for graph in (written, exported)
    ]
    assert counts[0] == counts[1]
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    assert session.run(None, {name: x[:1].float().numpy()})[0].shape == (1, 3)


@pytest.mark.parametrize(
    ("dropped", "what"),
    [
        (
            (4,),
            r"kept_layers lacks layer 4 \(block2.conv1\), which changes 4x12x12 to 8x6x6; keep it, or drop its whole "
            r"residual branch, layers 4..5",
        ),
        ((1,), r"kept_layers lacks layer 1 \(stem\), which changes 3x12x12 to 4x12x12; keep it$"),
    ],
)
def test_layers_that_break_shapes_are_refused_in_one_line(traced: Traced, dropped: tuple[int, ...], what: str) -> None:
    model, net, _ = traced
    with pytest.raises(SolutionError, match=what):
        lf.build_train_form(model, net, solution_without(net, *dropped))


def test_layers_that_do_not_exist_are_refused(traced: Traced) -> None:
    model, net, _ = traced
    solution = lf.Solution(act_pos=(), merge_pos=(7,), kept_layers=(1, 2, 9))
    with pytest.raises(SolutionError, match=r"kept_layers holds 9; this network has layers 1..7"):
        lf.build_train_form(model, net, solution)


def test_kept_layers_that_name_every_layer_change_nothing(traced: Traced) -> None:
    model, net, x = traced
    assert relative_error(outputs(traced, solution_without(net)), model(x)) <= TOLERANCE


@pytest.mark.parametrize("kind", ["train", "deploy"])
def test_form_on_disk_remembers_what_was_dropped(traced: Traced, tmp_path: Path, kind: str) -> None:
    double, net, x = traced
    model, x = copy.deepcopy(double).float(), x.float()
    solution = solution_without(net, 3, 4, 5, merge_pos=(1, 3, 5, 7))
    form = lf.build_train_form(model, net, solution)
    if kind == "deploy":
        form = lf.merge_network(form)
    path = tmp_path / "form.safetensors"
    recipe = Recipe(model="", input_shape=(3, 12, 12), solution=solution)
    save_form(form, path, kind=kind, recipe=recipe)  # type: ignore[arg-type]
    found = load_form(path, model)
    assert found.recipe.solution.kept_layers == (1, 2, 6, 7)
    with torch.no_grad():
        assert torch.equal(found.module(x), form(x))
