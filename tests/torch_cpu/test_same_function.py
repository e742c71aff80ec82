"""A traced graph is the user's module, judged on images of every number range, or it is refused for the true reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerfold as lf
from layerfold.graph import check_same_function
from tests.torch_cpu.exactness import check, original_plan


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def network(forward: Callable[..., Any]) -> nn.Module:
    return type("Network", (Net,), {"forward": forward})().eval()


def divides_by_its_sum(self: Any, x: Tensor) -> Tensor:
    return self.body(x / x.sum((1, 2, 3), keepdim=True).abs())


def normalises_vectors(self: Any, x: Tensor) -> Tensor:
    return self.body(x / x.norm(dim=1, keepdim=True))


def takes_roots(self: Any, x: Tensor) -> Tensor:
    return self.body(x / x.abs().sqrt())


def whitens(self: Any, x: Tensor) -> Tensor:
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return self.body((x - low) / (high - low))


def weighs_by_logits(self: Any, x: Tensor) -> Tensor:
    return self.body(x * torch.softmax(torch.log(x.abs().mean((2, 3), keepdim=True)), 1))


@pytest.mark.parametrize(
    "forward",
    [
        divides_by_its_sum,
        normalises_vectors,
        takes_roots,
        whitens,
        weighs_by_logits,
    ],
)
def test_a_network_that_answers_nothing_to_zeros_is_traced(forward: Callable[..., Any]) -> None:
    model = network(forward)
    for example in (torch.zeros(1, 3, 8, 8), torch.full((2, 3, 8, 8), 7.0), torch.full((1, 3, 8, 8), torch.nan)):
        lf.trace_network(model, example)
    check(model, (1, 3, 9, 9))


def kind_by_identity(self: Any, x: Any) -> Tensor:
    return self.body(x / 255 if type(x) is Tensor else x)


def kind_by_class_name(self: Any, x: Any) -> Tensor:
    return self.body(x * 2 if type(x).__name__ == "Tensor" else x)


def dtype_by_identity(self: Any, x: Tensor) -> Tensor:
    return self.body(x / 255 if x.dtype is torch.float32 else x)


def through_numbers(self: Any, x: Tensor) -> Tensor:
    try:
        return self.body(x * float(x.abs().max()))
    except Exception:
        return self.body(x)


def through_a_view(self: Any, x: Tensor) -> Tensor:
    x = self.body(x)
    half = x[:, :4]
    half.mul_(0.5)
    return x


@pytest.mark.parametrize(
    "forward",
    [
        kind_by_identity,
        kind_by_class_name,
        dtype_by_identity,
        through_numbers,
        through_a_view,
    ],
)
def test_what_tracing_does_not_see_is_refused(forward: Callable[..., Any]) -> None:
    with pytest.raises(lf.UnsupportedGraphError, match="computes something else on random images"):
        lf.trace_network(network(forward), torch.zeros(1, 3, 8, 8))


def drops_out(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.body(x), 0.5)


def adds_noise(self: Any, x: Tensor) -> Tensor:
    return self.body(x + 0.1 * torch.randn_like(x))


def counts_calls(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.body(x) * self.calls


def remembers_the_mean(self: Any, x: Tensor) -> Tensor:
    self.seen = 0.9 * self.seen + 0.1 * x.detach().mean()
    return self.body(x) + self.seen


def draws_a_constant(self: Any, x: Tensor) -> Tensor:
    return self.body(x) * torch.rand(1, 8, 1, 1)


@pytest.mark.parametrize("forward", [drops_out, adds_noise, counts_calls, remembers_the_mean, draws_a_constant])
def test_a_network_that_is_no_function_of_its_input_is_refused_as_that(forward: Callable[..., Any]) -> None:
    with pytest.raises(lf.UnsupportedGraphError, match="answers differently to the same image in eval mode"):
        lf.trace_network(network(forward), torch.zeros(1, 3, 8, 8))


def test_a_state_inside_a_part_that_stays_whole_is_refused() -> None:
    class Drifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x + self.calls if x.sum() != 0 else x

    with pytest.raises(lf.UnsupportedGraphError, match="keeps something from image to image"):
        lf.trace_network(nn.Sequential(nn.Conv2d(3, 4, 1), Drifts(), nn.Conv2d(4, 4, 1)), torch.zeros(1, 3, 8, 8))


def test_a_difference_before_a_gain_of_zero_is_seen() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x[:, :1] + self.gain * self.body(x / 255 if type(x) is Tensor else x)

    model = network(forward)
    model.gain = nn.Parameter(torch.zeros(1))
    with pytest.raises(lf.UnsupportedGraphError, match="computes something else"):
        lf.trace_network(model, torch.zeros(1, 3, 8, 8))


def test_a_small_difference_beside_a_large_constant_is_seen() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return 1e5 + self.body(x * 1.05 if type(x) is Tensor else x)

    with pytest.raises(lf.UnsupportedGraphError, match="computes something else"):
        lf.trace_network(network(forward), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    """Sums are reordered, over many layers and in every dtype, on outputs that hardly vary."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(24))

        def forward(self, x: Tensor) -> Tensor:
            for one, other in zip(self.convs[::2], self.convs[1::2], strict=True):
                x = x + (torch.tanh(one(x)) + other(x)) * 0.3
            return 100 + x * 0.01

    torch.manual_seed(0)
    model = Deep().to(dtype).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 16, 16))
    student = lf.build_train_form(model, net, original_plan(net))
    check_same_function(model, student, torch.rand(4, 3, 16, 16).to(dtype))


def test_forms_are_compared_on_a_users_own_images() -> None:
    torch.manual_seed(0)
    model = network(lambda self, x: self.body(x / 255))
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    images = torch.randint(0, 256, (4, 3, 12, 12)).float()
    student = lf.build_train_form(model, net, original_plan(net))
    assert check_same_function(model, student, images).of_variation < 1e-4
    assert check_same_function(model, lambda x: student(x).numpy(force=True), images).of_scale < 1e-5
    with torch.no_grad():
        next(student.parameters()).mul_(1.01)
    with pytest.raises(lf.EquivalenceError, match="differ by"):
        check_same_function(model, student, images)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda model: model.body[0].weight.data[0, 0].fill_(torch.nan), "body.0.weight"),
        (lambda model: model.body[2].bias.data[3:].fill_(torch.nan), "body.2.bias"),
        (lambda model: model.body.append(nn.BatchNorm2d(8))[-1].running_var.fill_(torch.nan), "body.4.running_var"),
        (lambda model: model.half().body[0].weight.data.fill_(torch.nan), "body.0.weight"),
        (lambda model: model.double().body[2].weight.data.fill_(torch.nan), "body.2.weight"),
        (lambda model: model.body.insert(0, nn.Conv2d(3, 3, 1, device="meta")), "body.0.weight"),
    ],
)
def test_weights_that_are_no_numbers_are_named(spoil: Callable[[Any], Any], name: str) -> None:
    model = Net()
    spoil(model)
    with pytest.raises(lf.UsageError, match=f"{name}.*(NaN|no values)"):
        lf.trace_network(model, torch.zeros(1, 3, 8, 8))


def test_a_part_that_stays_whole_keeps_the_activations_in_its_fused_norms() -> None:
    layers = pytest.importorskip("timm.layers")

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layers.ConvNormAct(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() != 0 else x

    net = check(
        nn.Sequential(layers.ConvNormAct(3, 4, 3), nn.Conv2d(4, 4, 1), Chooses(), nn.Conv2d(4, 4, 1)), (1, 3, 9, 9)
    )
    assert net.layer(1).activation is not None


@pytest.mark.parametrize(
    ("forward", "cause"),
    [
        (lambda self, x: self.body(x[:, :2]), "channels.*give the input size and channels"),
        (lambda self, x: self.body(x.view(1, 5, -1)), "shape.*give the input size and channels"),
        (lambda self, x: self.body(self.missing), "missing.*own forward fails"),
        (lambda self, x: self.body({}["key"]), "key.*own forward fails"),
        (lambda self, x: self.body(), "positional argument.*own forward fails"),
        (lambda self, x: self.body(x.double()), "let the forward keep their dtype"),
        (lambda self, x: self.body(x.half()), "let the forward keep their dtype"),
        (lambda self, x: self.body(x.to(torch.uint8)), "let the forward keep their dtype"),
    ],
)
def test_a_model_that_does_not_run_is_refused_with_its_line_and_true_advice(
    forward: Callable[..., Any], cause: str
) -> None:
    line = r"1x3x8x8 does not run through Network \(test_same_function.py:\d+ `.*`\): .*"
    with pytest.raises(lf.UnsupportedGraphError, match=line + cause):
        lf.trace_network(network(forward), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("place", ["", "0", "1", "2", "3", "4"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_a_hook_that_changes_something_is_not_lost(place: str, kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Identity(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1))
    part = model.get_submodule(place)
    if kind == "forward":
        part.register_forward_hook(lambda module, inputs, output: output * output.mean((2, 3), keepdim=True))
    else:
        part.register_forward_pre_hook(lambda module, inputs: (inputs[0] * inputs[0].amax((2, 3), keepdim=True),))
    check(model, (1, 3, 12, 12), merge_pooling=True, larger=4)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.body(x * 4 if x.shape[0] == 1 else x),
        lambda self, x: self.body(x if x.size(0) != 1 else x.flip(-1)),
        lambda self, x: self.body(x * {1: 3.0}.get(x.shape[0], 1.0)),
        lambda self, x: self.body(x + 1 if x.shape == (1, 3, 8, 8) else x),
        lambda self, x: self.body(x) * (2 if tuple(x.shape[:2]) == (1, 3) else 1),
    ],
)
@pytest.mark.parametrize("images", [1, 2, 4])
def test_another_function_of_a_single_image_is_refused(forward: Callable[..., Any], images: int) -> None:
    with pytest.raises(lf.UnsupportedGraphError, match="number of images"):
        lf.trace_network(network(forward), torch.zeros(images, 3, 8, 8))


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.body(x.half().float()),
        lambda self, x: self.body((x * 255).to(torch.uint8).float() / 255),
        lambda self, x: self.body(x.to(torch.bfloat16).to(torch.float32)),
        lambda self, x: self.body((x > 0).to(x.dtype)),
        lambda self, x: self.body(x.double().float()),
        lambda self, x: self.body(x.int().to(x.dtype)),
    ],
)
def test_casts_in_a_forward_are_traced(forward: Callable[..., Any]) -> None:
    assert lf.trace_network(network(forward), torch.zeros(1, 3, 8, 8)).layers


class _Weighed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias)


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize("kind", [_Weighed, _Standardised])
def test_convs_that_are_none_are_named(kind: type[nn.Conv2d]) -> None:
    with pytest.raises(lf.UnsupportedGraphError, match=f"what {kind.__name__} computes"):
        lf.trace_network(nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 8, 3)), torch.zeros(1, 3, 8, 8))
