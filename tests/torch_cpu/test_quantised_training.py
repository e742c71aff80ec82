"""Training for int8: what is rounded in training is what the quantised file computes, and runs go on exactly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import fx, nn

import layerfold as lf
from layerfold.errors import UsageError
from layerfold.finetune import finetune_merged, float_checkpoint
from layerfold.merge import ACTIVATION_RANGES, Recipe, load_form, save_form
from layerfold.profiler.backends.base import cpu_flags
from layerfold.qat import RoundedFeatureMap, fake_quantised, find_places, quantised_onnx, rounded_maps, rounded_network
from layerfold.qat._fake import levels_of, round_weight
from layerfold.quantise.scales import activation_scale, quantised_weight, weight_scales
from tests.torch_cpu.small_training import Interrupt, images, interrupted_after, is_same

Run = dict[str, Any]
RUN: Run = {"batch_size": 16, "learning_rate": 0.02, "progress": False, "precision": "int8"}


class Residual(nn.Module):
    """What a quantised graph is made of: convs of all kinds, an addition, bounded activations, pooling, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)
        )
        self.narrow = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.narrow(self.depth(self.wide(x)))
        return self.head(self.last(x).mean((2, 3)))


SOLUTION = lf.Solution(act_pos=[1, 2, 5], merge_pos=[1, 2, 4, 5])
"""The activation behind the depthwise conv goes; it is merged with the pointwise conv behind it."""


def original(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Residual()


def train_form(model: nn.Module) -> fx.GraphModule:
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    return lf.build_train_form(model, net, SOLUTION)


def holdout() -> torch.Tensor:
    data = images()
    split = data.split("holdout")
    return torch.stack([split[index][0] for index in range(len(split))])


@pytest.fixture(scope="module")
def trained() -> fx.GraphModule:
    """A train form after a short training for int8."""
    model = original()
    form = train_form(model)
    lf.finetune_network(form, images(), teacher=model, steps=12, **RUN)
    return form


def in_onnxruntime(onnx_bytes: bytes, given: torch.Tensor) -> NDArray[Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: given.numpy()})[0]
    return found


def in_openvino(onnx_bytes: bytes, given: torch.Tensor) -> NDArray[Any]:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx_bytes), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled(given.numpy())[0])


def test_weights_are_rounded_as_the_quantiser_rounds_them() -> None:
    torch.manual_seed(0)
    for shape in ((7, 5, 3, 3), (4, 1, 9, 9), (3, 8)):
        weight = torch.randn(shape) * torch.logspace(-3, 2, shape[0]).view(-1, *[1] * (len(shape) - 1))
        scales = weight_scales(weight.numpy(), 0, bits=8, bias=None, input_scale=1.0)
        whole = quantised_weight(weight.numpy(), scales, 0, bits=8)
        expected = whole * scales.reshape(-1, *[1] * (len(shape) - 1))
        assert np.array_equal(round_weight(weight).numpy(), expected)


def test_zero_points_and_steps_are_the_quantisers() -> None:
    numbers = np.random.default_rng(0)
    ends = [(0.0, 6.0), (-1.0, 0.0), (0.0, 0.0), *((-float(x), float(y)) for x, y in numbers.exponential(2, (500, 2)))]
    for low, high in np.asarray(ends, np.float32).tolist():
        expected = activation_scale("x", low, high, symmetric=False)
        scale, zero_point = levels_of(torch.tensor(low), torch.tensor(high))
        assert (scale.item(), int(zero_point)) == (float(expected.scale), expected.zero_point)


def test_range_learns_by_what_it_cuts_off_and_what_it_rounds() -> None:
    part = RoundedFeatureMap().double()
    part.set_range(-1.0, 2.0)
    x = torch.tensor([[-3.0, 0.4, 5.0, 7.0]], dtype=torch.float32, requires_grad=True)
    part.float()
    part(x).backward(torch.tensor([[1.0, 10.0, 1.0, 1.0]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 10.0, 0.0, 0.0]]
    rounding = (part(x) - x)[0, 1].item() / 3.0 * 10.0
    factor = (4 * 255) ** -0.5
    assert float(part.low.grad) == pytest.approx((1.0 - rounding) * factor, rel=1e-3)
    assert float(part.high.grad) == pytest.approx((2.0 + rounding) * factor, rel=1e-3)


def test_every_rounded_feature_map_has_its_place_and_bounds() -> None:
    merged = lf.merge_network(train_form(original()).eval(), cut_borders=False)
    places = find_places(merged)
    assert all(place.node is not None for place in places)
    by_node = {place.node: (place.low, place.high) for place in places}
    assert by_node["stem_2"] == by_node["wide_2"] == (0.0, 6.0)
    assert by_node["last_2"] == (0.0, float("inf"))
    assert {"x", "add", "mean"} <= by_node.keys()
    assert "segment_2_4" in by_node
    assert "wide_0" not in by_node  # the activation behind it is what is rounded


def test_merged_kernel_is_what_is_rounded_and_its_layers_are_what_trains() -> None:
    form = train_form(original()).eval()
    merged = lf.merge_network(form, cut_borders=False)
    network = rounded_network(form, ()).eval()
    x = torch.randn(2, 16, 8, 8)
    segment = network.get_submodule("segment_2_4")
    conv = merged.get_submodule("segment_2_4")
    expected = nn.functional.conv2d(x, round_weight(conv.weight), conv.bias, padding=conv.padding)
    assert torch.allclose(segment(x), expected, atol=1e-5)
    segment(x).square().mean().backward()
    of_segment = {name for name, each in segment.named_parameters() if each.grad is not None}
    assert of_segment == {name for name, _ in segment.named_parameters()}
    assert len(of_segment) == 6  # two weights, two norms


def test_ranges_stay_where_an_activation_ends(trained: fx.GraphModule) -> None:
    ranges = trained.meta[ACTIVATION_RANGES]
    assert ranges["stem_2"][0] == 0.0
    assert 0.0 < ranges["stem_2"][1] <= 6.0
    assert all(low <= 0.0 < high for low, high in ranges.values())


@pytest.mark.parametrize(("run", "left_out"), [(in_onnxruntime, None), (in_openvino, "segment_2_4")])
def test_quantised_file_computes_what_was_trained(trained: fx.GraphModule, run: Any, left_out: str | None) -> None:
    if run is in_openvino and ("ONEDNN_MAX_CPU_ISA" in os.environ or not any("vnni" in flag for flag in cpu_flags())):
        pytest.skip("without VNNI products of eight bits are added up in sixteen, which may overflow")
    merged = lf.merge_network(trained)
    given = holdout()
    found = run(quantised_onnx(merged, given), given)
    network = fake_quantised(trained)
    if left_out is not None:  # OpenVINO adds up a conv and what is added behind it without rounding in between
        dict(rounded_maps(network))[left_out].set_range(0.0, 0.0)
    with torch.no_grad():
        expected = network(given).numpy()
        in_float = trained(given).numpy()
    # Where a value lies between two levels runtimes round either way, so that logits differ by at most a step of the
    # map that they are computed from; most do not differ at all.
    low, high = trained.meta[ACTIVATION_RANGES]["mean"]
    step = (high - low) / 255 * float(np.abs(merged.get_submodule("head").weight.detach().numpy()).sum(1).max())
    difference = np.abs(found - expected)
    assert difference.max() <= step
    assert (difference < step / 50).mean() >= 0.5
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.98
    # That can fail: rounding itself moves the outputs by far more.
    assert np.abs(in_float - expected).mean() > 1.5 * difference.mean()


def test_quantised_file_has_the_ranges_that_were_trained(trained: fx.GraphModule) -> None:
    graph = onnx.load_from_string(quantised_onnx(lf.merge_network(trained), holdout()[:1])).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    written = {
        (float(constants[node.input[1]]), int(constants[node.input[2]]))
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    expected = set()
    for low, high in trained.meta[ACTIVATION_RANGES].values():
        scale = activation_scale("x", low, high, symmetric=False)
        expected.add((float(scale.scale), scale.zero_point))
    assert written == expected


def test_form_on_disk_gives_the_same_quantised_file(trained: fx.GraphModule, tmp_path: Path) -> None:
    recipe = Recipe(model="", input_shape=(3, 8, 8), solution=SOLUTION)
    given = holdout()[:1]
    expected = quantised_onnx(lf.merge_network(trained), given)
    save_form(trained, tmp_path / "form.safetensors", kind="train", recipe=recipe)
    form = load_form(tmp_path / "form.safetensors", original())
    assert form.module.meta[ACTIVATION_RANGES] == trained.meta[ACTIVATION_RANGES]
    merged = lf.merge_network(form.module)
    assert quantised_onnx(merged, given) == expected
    save_form(merged, tmp_path / "merged.safetensors", kind="deploy", recipe=recipe)
    deploy = load_form(tmp_path / "merged.safetensors", original())
    assert quantised_onnx(deploy.module, given) == expected


def test_ranges_in_a_file_that_are_none_are_refused(trained: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "form.safetensors"
    save_form(trained, path, kind="train", recipe=Recipe(model="", input_shape=(3, 8, 8), solution=SOLUTION))
    sidecar = path.with_name(path.name + ".json")
    text = sidecar.read_text()
    (name, (low, high)), *_ = trained.meta[ACTIVATION_RANGES].items()
    import json

    content = json.loads(text)
    content[ACTIVATION_RANGES][name] = [high, low]
    sidecar.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"activation_ranges: '{name}': .* is no range"):
        load_form(path, original())


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("after", [3, 9])  # in the steps in float32, in the rounded ones
def test_interrupted_training_ends_with_the_same_bytes(form: str, after: int, tmp_path: Path) -> None:
    def go(checkpoint: Path | None, steps: int | None = None) -> nn.Module:
        model = original()
        student = train_form(model)
        if steps is not None:
            # In the head: a part of every network on the way, forms and rounded ones.
            interrupted_after(student.get_submodule("last.2"), steps)
        options = lf.FinetuneOptions(steps=12, batch_size=16, learning_rate=0.02, precision="int8", ema_decay=0.9)
        run = lf.RunOptions(progress=False, checkpoint_path=checkpoint, checkpoint_every_s=0)
        if form == "deploy":
            return finetune_merged(student, images(), options, teacher=model, run=run)[0]
        lf.finetune_network(student, images(), options, teacher=model, run=run)
        return student

    whole = go(None)
    checkpoint = tmp_path / "state"
    with pytest.raises(Interrupt):
        go(checkpoint, after + 2)
    assert checkpoint.exists() == (after > 6)
    assert float_checkpoint(checkpoint).exists()
    resumed = go(checkpoint)
    assert is_same(whole, resumed)
    assert whole.meta[ACTIVATION_RANGES] == resumed.meta[ACTIVATION_RANGES]


def test_log_and_report_number_both_parts_through(tmp_path: Path) -> None:
    form = train_form(original())
    report = lf.finetune_network(form, images(), epochs=4, log_path=tmp_path / "log.csv", int8_share=0.5, **RUN)
    assert [row.epoch for row in report.history] == [1, 2, 3, 4]
    assert [row.steps for row in report.history] == [4, 8, 12, 16]
    assert report.options["precision"] == "int8"
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["1", "4"], ["2", "8"], ["3", "12"], ["4", "16"]]
    assert report.history[2].learning_rate < report.history[0].learning_rate / 5


def test_training_in_float_again_forgets_the_ranges() -> None:
    form = train_form(original())
    lf.finetune_network(form, images(), steps=2, int8_share=1.0, **RUN)
    assert ACTIVATION_RANGES in form.meta
    lf.finetune_network(form, images(), steps=2, **{**RUN, "precision": "float32"})
    assert ACTIVATION_RANGES not in form.meta


def test_what_makes_no_sense_is_refused() -> None:
    form = train_form(original())
    with pytest.raises(UsageError, match=r"mixed_precision='bf16': must be no with precision='int8'"):
        lf.FinetuneOptions(precision="int8", mixed_precision="bf16")
    with pytest.raises(UsageError, match="keep_other: ranges of feature maps are kept for one set"):
        lf.finetune_network(form, images(), keep_other=True, **RUN)
    with pytest.raises(UsageError, match="int8_share=1 leaves none"):
        lf.finetune_network(form, images(), fade=0.2, int8_share=1.0, **RUN)
    with pytest.raises(UsageError, match="takes a traced network, this is a Residual; give what build_train_form"):
        lf.finetune_network(original(), images(), int8_share=1.0, steps=1, **RUN)
    with pytest.raises(UsageError, match="was not trained in int8"):
        quantised_onnx(lf.merge_network(form.eval()), torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="precision='float32': the merged network is trained for int8"):
        finetune_merged(form, images(), lf.FinetuneOptions())
