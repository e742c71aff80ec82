"""Quantisation after training: what calibration, equalisation and bias correction give, and what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import layerfold as lf
from layerfold.errors import UsageError
from layerfold.export import export_onnx
from layerfold.quantise import check_quantised, quantised_network
from layerfold.quantise.bias import correct_biases
from layerfold.quantise.calibration import ranges_of
from layerfold.quantise.equalise import equalise
from layerfold.quantise.graph import quantised_model
from layerfold.quantise.network import outputs_of, relative_error
from layerfold.quantise.observe import observe
from layerfold.quantise.placement import place
from layerfold.quantise.prepare import prepared


def images(count: int = 24, size: int = 16, seed: int = 0) -> np.ndarray:
    """Return images whose values are not the same everywhere: smooth, of different brightness."""
    generator = np.random.default_rng(seed)
    rough = generator.standard_normal((count, 3, size // 4, size // 4)).astype(np.float32)
    return rough.repeat(4, axis=2).repeat(4, axis=3) + 0.1 * generator.standard_normal((count, 3, size, size)).astype(
        "f"
    )


def uneven_bytes(activation: type[nn.Module] = nn.ReLU) -> bytes:
    """Return a network whose channels are of very different sizes, as those of merged convs are."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        activation(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        activation(),
        nn.Conv2d(16, 12, 1),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).eval()
    sizes = torch.logspace(-2.5, 0, 16)
    with torch.no_grad():
        model[0].weight *= sizes.reshape(-1, 1, 1, 1)
        model[0].bias *= sizes
        model[2].weight /= sizes.reshape(-1, 1, 1, 1)
    return export_onnx(model, torch.zeros(4, 3, 16, 16))


def error_of(model: object, batches: list[np.ndarray], options: lf.QuantiseOptions, expected: np.ndarray) -> float:
    placement = place(model)
    observed = observe(model, [each for each in placement.quantised if each not in placement.same_as], batches)
    quantised = quantised_model(model, ranges_of(placement, observed, options), options)
    return relative_error(outputs_of(quantised, batches), expected)


def test_a_quantised_network_answers_nearly_as_the_float_one_on_other_images() -> None:
    float_bytes = uneven_bytes()
    found = quantised_network(float_bytes, [images()], lf.QuantiseOptions())
    check = check_quantised(found.onnx_bytes, float_bytes, [images(seed=9)])
    assert found.num_images == check.num_images == 24
    assert check.agreement_pct > 90
    assert check.relative_error < 0.03
    assert check.accuracy_pct is None
    labels = outputs_of(prepared(float_bytes), [images(seed=9)[at : at + 4] for at in range(0, 24, 4)]).argmax(axis=1)
    labelled = check_quantised(found.onnx_bytes, float_bytes, [(images(seed=9), labels)])
    assert labelled.float_accuracy_pct == 100
    assert labelled.accuracy_pct == check.agreement_pct


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Identity])
def test_equalisation_changes_no_answer_and_lowers_the_error_where_channels_differ(activation) -> None:
    float_bytes = uneven_bytes(activation)
    batches = [images()[at : at + 4] for at in range(0, 24, 4)]
    model, evened = prepared(float_bytes), prepared(float_bytes)
    placement = place(model)
    observed = observe(model, [each for each in placement.quantised if each not in placement.same_as], batches)
    assert equalise(evened, placement, observed) >= 1
    expected = outputs_of(model, batches)
    assert relative_error(outputs_of(evened, batches), expected) < 1e-5
    options = lf.QuantiseOptions(bias_correction=False)
    assert error_of(evened, batches, options, expected) < 0.7 * error_of(model, batches, options, expected)


def test_bias_correction_takes_away_the_mean_error_of_rounded_weights() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 32, 5, padding=0)
    model = prepared(export_onnx(nn.Sequential(conv).eval(), torch.zeros(4, 3, 16, 16)))
    batches = [images()[at : at + 4] + 3 for at in range(0, 24, 4)]
    options, placement = lf.QuantiseOptions(method="minmax"), place(model)
    observed = observe(model, list(placement.quantised), batches)
    ranges = ranges_of(placement, observed, options)
    expected = outputs_of(model, batches).mean(axis=(0, 2, 3))
    before = outputs_of(quantised_model(model, ranges, options), batches).mean(axis=(0, 2, 3)) - expected
    correct_biases(model, placement, ranges, observed, options)
    after = outputs_of(quantised_model(model, ranges, options), batches).mean(axis=(0, 2, 3)) - expected
    assert np.abs(after).mean() < 0.5 * np.abs(before).mean()


def test_a_conv_without_bias_gets_one_to_correct() -> None:
    torch.manual_seed(1)
    float_bytes = export_onnx(nn.Conv2d(3, 32, 5, bias=False).eval(), torch.zeros(4, 3, 16, 16))
    found = quantised_network(float_bytes, [images() + 3], lf.QuantiseOptions())
    without = quantised_network(float_bytes, [images() + 3], lf.QuantiseOptions(bias_correction=False))
    assert found.is_bias_corrected
    assert found.relative_error < without.relative_error


def test_what_does_not_help_is_left_out() -> None:
    float_bytes, given = uneven_bytes(), [images()]
    errors = {
        (bias, even): quantised_network(
            float_bytes, given, lf.QuantiseOptions(bias_correction=bias, equalisation=even)
        ).relative_error
        for bias in (False, True)
        for even in (False, True)
    }
    assert errors[True, True] == min(errors.values())


def test_batches_of_any_size_and_kind_give_the_same_network() -> None:
    float_bytes, all_images = uneven_bytes(), images()
    whole = lf.quantise_network(float_bytes, [all_images])
    parts = [torch.from_numpy(all_images[:7]), torch.from_numpy(all_images[7:])]
    assert whole == lf.quantise_network(float_bytes, parts)
    assert whole == lf.quantise_network(float_bytes, [(each, torch.zeros(len(each))) for each in parts])
    fewer = lf.quantise_network(float_bytes, [all_images], calibration_images=8)
    assert fewer == lf.quantise_network(float_bytes, [all_images[:8]])
    assert fewer != whole


@pytest.mark.parametrize(
    ("given", "settings", "reason"),
    [
        ([], {}, "there are no images"),
        ([images(6)], {"calibration_images": 7}, "calibration_images=7: there are only 6 images"),
        ([images(4, size=32)], {}, r"shape \(3, 32, 32\), the network takes \(3, 16, 16\)"),
        ([np.full((4, 3, 16, 16), 0.5, np.float32)], {}, "one colour"),
        ([np.full((4, 3, 16, 16), np.nan, np.float32)], {}, "images hold NaN"),
        ([images(4)], {"calibration_images": 0}, "calibration_images=0"),
        ([images(4)], {"method": "entropy"}, "method='entropy': must be one of"),
    ],
)
def test_bad_images_and_settings_are_refused_in_one_line(given, settings, reason) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        lf.quantise_network(uneven_bytes(), given, **settings)
    assert "\n" not in str(caught.value)


def test_a_network_that_overflows_on_the_images_is_refused() -> None:
    model = onnx.load_from_string(uneven_bytes())
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), 3e38, np.float32), weight.name))
    with pytest.raises(UsageError, match="holds NaN or infinity on these images"):
        lf.quantise_network(model.SerializeToString(), [images()])


def test_a_network_of_two_inputs_or_without_convs_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.conv(x) + y

    puts = (torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 16, 16))
    two = export_onnx(Two().eval(), puts, input_names=("x", "y"))
    with pytest.raises(UsageError, match="has 2 inputs"):
        lf.quantise_network(two, [images()])
    pooling = export_onnx(nn.AdaptiveAvgPool2d(1), torch.zeros(1, 3, 16, 16))
    with pytest.raises(UsageError, match="holds nothing to quantise"):
        lf.quantise_network(pooling, [images()])
