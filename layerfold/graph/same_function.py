"""Whether two networks are one function, judged on images of several number ranges.

What is compared are outputs, so the question is how large a difference is. Rounding grows with depth and with the
outputs, while a fault may be small beside an output that hardly depends on the image. So a difference is held against
how much the output varies from image to image; and where rounding could explain it, both networks run again in float64,
where rounding explains next to nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from layerfold.errors import EquivalenceError, UnsupportedGraphError
from layerfold.graph.copying import copy_module

Images = tuple[torch.Tensor, ...]
"""One batch: a tensor for each of a model's inputs, images first."""

_OF_VARIATION = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUNDING = {torch.float64: 1e-9, torch.float32: 0.05}
"""The most that rounding may explain, of the largest output; in half precision more. Code may branch by the dtype."""
_OF_SCALE_EXACT = 1e-11
"""In float64: what is no difference at all, of the largest output, however little that varies."""
_OF_VARIATION_ROUNDED = 0.05
"""Where float64 cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest difference between two networks' outputs.

    Attributes:
        of_variation: over the largest change of the expected output from one image to another.
        of_scale: over the largest expected output.
        is_blind: no expected output was finite, so that nothing was compared.
    """

    of_variation: float
    of_scale: float
    is_blind: bool = False


def check_same_function(model: nn.Module, other: Callable[..., Any], images: torch.Tensor | Images) -> Difference:
    """Hold a network to computing the same as ``model``, in eval mode.

    Args:
        model: the user's module; left untouched.
        other: the traced graph, a train form, or anything that takes the same images, as an ONNX session; a merged form
            in float64, since its weights are rounded.
        images: [N, C, H, W] in the numbers that the model is made for, at least two and not all alike; or a tuple of
            the model's inputs.

    Returns:
        How far apart they are.

    Raises:
        EquivalenceError: they are different functions.
        UnsupportedGraphError: the model answers differently to the same images, or never with finite numbers.
    """
    batch = images if isinstance(images, tuple) else (images,)
    name = type(model).__name__
    agreement = Agreement(eval_copy(model), other)
    reason = agreement.reason([batch])
    if reason == OTHER:
        raise EquivalenceError(
            f"model {name} and the network made from it differ by {agreement.difference.of_variation:.2g} of what the "
            f"output varies from image to image, on {len(batch[0])} images; use no result of it, and report this "
            "model as a bug"
        )
    if reason:
        raise UnsupportedGraphError(f"model {name}: {reason}")
    return agreement.difference


OTHER = "computes something else"
RANDOM = (
    "it answers differently to the same image in eval mode: it draws random numbers or keeps something from image to "
    "image; make it a function of its input alone"
)
EMPTY = "its answer holds no tensors or numbers to compare"
BLIND = (
    "its outputs are not finite for random images of any number range; check its weights, or pass images that it is "
    "made for as example_input"
)


class Agreement:
    """Two networks that should be one function.

    Attributes:
        difference: the last one found.
    """

    def __init__(self, reference: nn.Module, other: Callable[..., Any]) -> None:
        self.reference, self.other = reference, other
        self.difference = Difference(of_variation=0.0, of_scale=0.0)

    def reason(self, batches: Sequence[Images], expected: Sequence[Any] | None = None, found: Any = None) -> str:
        """Return why they are not: ``OTHER``, ``RANDOM``, ``BLIND`` or ``EMPTY``; empty where they agree.

        Args:
            batches: what to run.
            expected, found: outputs for them, where those are there already.
        """
        expected = [run(self.reference, batch) for batch in batches] if expected is None else expected
        found = [run(self.other, batch) for batch in batches] if found is None else found
        self.difference = difference(found, expected, [len(batch[0]) for batch in batches])
        if self.difference.is_blind:
            return BLIND if any(True for each in expected for _ in _leaves(each)) else EMPTY
        dtype = _dtype_of(expected)
        if self.difference.of_variation <= _OF_VARIATION.get(dtype, 1e-3):
            return ""
        again = difference([run(self.reference, batch) for batch in batches], expected, [len(b[0]) for b in batches])
        if again.of_variation > 1e-3 and again.of_scale > 1e-5:
            return RANDOM
        if self.difference.of_scale > _ROUNDING.get(dtype, 0.3):
            return OTHER
        precise = self._in_float64(batches)
        if precise is None:
            return "" if self.difference.of_variation <= _OF_VARIATION_ROUNDED else OTHER
        self.difference = precise
        is_same = precise.of_variation <= _OF_VARIATION[torch.float64] or precise.of_scale <= _OF_SCALE_EXACT
        return "" if is_same else OTHER

    def _in_float64(self, batches: Sequence[Images]) -> Difference | None:
        """Return the difference in float64; None where one of the two does not run so."""
        if not isinstance(self.other, nn.Module):
            return None
        try:
            reference, other = (eval_copy(each).double() for each in (self.reference, self.other))
            wide = [tuple(each.double() if each.is_floating_point() else each for each in batch) for batch in batches]
            expected, found = ([run(network, batch) for batch in wide] for network in (reference, other))
            return difference(found, expected, [len(batch[0]) for batch in batches])
        except Exception:  # its forward asks for a dtype of its own
            return None


def eval_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model in eval mode, which may be changed: it shares no parameter."""
    return copy_module(model, is_apart=True).eval()


def run(network: Callable[..., Any], inputs: Images) -> Any:
    """Return a network's outputs; its inputs stay as they are, whatever it does to them."""
    with torch.no_grad():
        return network(*(copy.deepcopy(value) for value in inputs))


def difference(found: Sequence[Any], expected: Sequence[Any], sizes: Sequence[int]) -> Difference:
    """Return how far outputs are from the expected ones, the worst of all tensors in them.

    Args:
        found, expected: outputs for each batch, nested as the model nests them.
        sizes: how many images each batch has.
    """
    ours, theirs = ([dict(_leaves(each)) for each in outputs] for outputs in (found, expected))
    far = Difference(of_variation=math.inf, of_scale=math.inf)
    if [each.keys() for each in ours] != [each.keys() for each in theirs]:
        return far
    worst_variation = worst_scale = 0.0
    is_blind = True
    for path in theirs[0]:
        pairs = [(one[path], other[path]) for one, other in zip(ours, theirs, strict=True)]
        if any(one.shape != other.shape for one, other in pairs):
            return far
        if any(not torch.equal(torch.isfinite(one), torch.isfinite(other)) for one, other in pairs):
            return far
        values = [torch.where(torch.isfinite(other), other, 0) for _, other in pairs]
        error = max(
            (
                _largest(torch.where(torch.isfinite(one), one, 0) - value)
                for (one, _), value in zip(pairs, values, strict=True)
            ),
            default=0.0,
        )
        is_blind &= not any(bool(torch.isfinite(other).any()) for _, other in pairs)
        worst_scale = max(worst_scale, _ratio(error, max(map(_largest, values))))
        worst_variation = max(worst_variation, _ratio(error, _variation(values, sizes)))
    return Difference(of_variation=worst_variation, of_scale=worst_scale, is_blind=is_blind)


def _ratio(error: float, size: float) -> float:
    return 0.0 if error == 0 else error / size if size else math.inf


def _largest(value: torch.Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def _variation(values: Sequence[torch.Tensor], sizes: Sequence[int]) -> float:
    """Return the largest change of a tensor from one image to another, within batches and between them."""
    found = 0.0
    for value, images in zip(values, sizes, strict=True):
        if value.dim() and value.shape[0] == images > 1:
            found = max(found, _largest(value - value.mean(0, keepdim=True)))
        if value.shape == values[0].shape:
            found = max(found, _largest(value - values[0]))
    return found


def _dtype_of(outputs: Sequence[Any]) -> torch.dtype:
    """Return the narrowest float dtype of the outputs."""
    dtypes = {value.dtype for each in outputs for value in _tensors(each) if value.is_floating_point()}
    return min(dtypes, key=lambda dtype: torch.finfo(dtype).bits, default=torch.float32)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    for _, part in parts(value):
        if isinstance(part, torch.Tensor):
            yield part


def _leaves(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor and number of nested outputs in float64, with where it stands."""
    for path, part in parts(value):
        if isinstance(part, torch.Tensor):
            yield path, part.detach().to("cpu", torch.float64)
        elif isinstance(part, (bool, int, float)):
            yield path, torch.tensor(float(part), dtype=torch.float64)


def parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every part of nested outputs with where it stands; of a single tensor that is the empty text."""
    if isinstance(value, dict):
        inner: Any = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    elif is_dataclass(value):
        inner = [(each.name, getattr(value, each.name)) for each in fields(value)]
    else:
        # An array, as a runtime answers with.
        yield path, torch.as_tensor(value) if hasattr(value, "__array__") else value
        return
    for key, each in inner:
        yield from parts(each, f"{path}/{key}")
