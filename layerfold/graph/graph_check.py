"""That a traced graph is the module it was traced from: on images of several number ranges, and with other weights.

A graph may lack what tracing did not see. So its outputs are compared with the module's own: for images of several
ranges of numbers, for two batch sizes, and with weights that were shaken, since a gain of zero hides what lies before
it. What takes long runs on smaller images, as far as the network allows.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.errors import UnsupportedGraphError
from layerfold.graph.alone import one_of
from layerfold.graph.examples import image_ranges
from layerfold.graph.same_function import OTHER, RANDOM, Agreement, Images, eval_copy, run

_MANY_MACS, _LEAST_SIZE = 1e9, 64
_SHAKEN_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model run on the images that its graph is traced with.

    Attributes:
        reference: a copy of the model in eval mode.
        batches: inputs in several number ranges; the first is traced with.
        outputs: of the reference, for each batch.
    """

    reference: nn.Module
    batches: tuple[Images, ...]
    outputs: tuple[Any, ...]


def first_trial(model: nn.Module, inputs: Images, *, is_varied: bool) -> Trial:
    """Run a model on two images or more.

    Args:
        model: left untouched.
        inputs: the example inputs.
        is_varied: the images are the caller's own, so that the first of them is used.

    Raises:
        UnsupportedGraphError: it does not run on inputs of these shapes.
    """
    reference = eval_copy(model)
    own = inputs[0].shape[0] if inputs[0].dim() else 1
    batch = in_ranges(inputs, 2)
    if is_varied:
        for value, example in zip(batch, inputs, strict=True):
            if value.is_floating_point() and value.dim() and len(example) and value.shape[1:] == example.shape[1:]:
                value[0] = example[0]
    try:
        return Trial(reference=reference, batches=(batch,), outputs=(run(reference, batch),))
    except Exception as error:
        if own == 2:
            raise _does_not_run(model, inputs, error) from error
    # Not with two images: perhaps it is made for one batch size alone.
    batches = tuple(in_ranges(inputs, own, seed=seed) for seed in (0, 1))
    try:
        return Trial(reference=reference, batches=batches, outputs=tuple(run(reference, each) for each in batches))
    except Exception as error:
        raise _does_not_run(model, inputs, error) from error


def check_traced(
    model: nn.Module,
    trial: Trial,
    module: fx.GraphModule,
    found: Any,
    macs: int,
    put_on: Callable[[nn.Module], nn.Module],
) -> None:
    """Refuse a graph that does not compute the model: what fx did not see would be missing in every result.

    Args:
        model: the user's.
        trial: its outputs.
        module: the traced graph.
        found: the graph's outputs for the trial's first batch.
        macs: multiply-adds for one image.
        put_on: puts the graph on another copy of the model.

    Raises:
        UnsupportedGraphError: the outputs differ, or the model is no function of its input.
    """
    agreement = Agreement(trial.reference, module)
    outputs = [found, *(run(module, batch) for batch in trial.batches[1:])]
    _refuse(model, agreement.reason(trial.batches, trial.outputs, outputs))
    sizes: list[Callable[[Images], Images]] = [_smaller] if macs > _MANY_MACS else []
    shaken = shake(eval_copy(model))
    other = Agreement(shaken, put_on(shaken).eval())
    one_size = len(trial.batches) > 1
    images = trial.batches[0] if one_size else in_ranges(trial.batches[0], _SHAKEN_IMAGES, seed=2)
    for change in (*sizes, _as_they_are):
        batch = change(images)
        try:
            expected = [run(shaken, batch), *([run(shaken, trial.batches[1])] if one_size else [])]
        except Exception:  # not at this size, or not with so many images
            if change is _smaller:
                continue
            batch = trial.batches[0]
            expected = [run(shaken, batch)]
        batches = [batch, *(trial.batches[1:] if one_size else ())]
        try:
            reason = other.reason(batches, expected)
        except Exception:
            reason = OTHER
        if reason in (OTHER, RANDOM) and change is _smaller:
            continue
        if reason == OTHER and len(batch[0]) != len(trial.batches[0][0]):
            reason = _other_batch(other, trial)
        if reason in (OTHER, RANDOM) or not reason:
            _refuse(model, reason)
        break
    if not one_size:
        _check_one_image(model, other, _smaller(images) if sizes else images)
    probe = _smaller(trial.batches[0]) if sizes else trial.batches[0]
    try:
        first = run(trial.reference, probe) if sizes else trial.outputs[0]
    except Exception:
        probe, first = trial.batches[0], trial.outputs[0]
    _refuse(model, Agreement(trial.reference, trial.reference).reason([probe], [first]))


def _other_batch(other: Agreement, trial: Trial) -> str:
    """Return why a graph fails with more images: of itself, or since it was traced with fewer."""
    try:
        reason = other.reason(trial.batches)
    except Exception:
        reason = OTHER
    return reason or (
        "its forward counts the images of a batch in a way that tracing cannot follow, so that the traced graph holds "
        "for one batch size only; take the number from x.shape[0] alone"
    )


def _check_one_image(model: nn.Module, agreement: Agreement, images: Images) -> None:
    """Refuse a graph of another function of one image than of several: a forward may branch by their number."""
    batches = [one_of(images, index) for index in (0, 1)]
    try:
        expected = [run(agreement.reference, batch) for batch in batches]
    except Exception:  # it is made for several images
        return
    try:
        reason = agreement.reason(batches, expected)
    except Exception:
        reason = OTHER
    if reason == OTHER:
        reason = (
            "its forward does something else with one image than with several, which one traced graph cannot; write it "
            "so that it does not depend on the number of images"
        )
        _refuse(model, reason)


def in_ranges(inputs: Images, count: int, *, seed: int = 0) -> Images:
    """Return ``count`` random images per batch, each in another range of numbers, of the kind of the given inputs."""
    images = inputs[0].shape[0] if inputs[0].dim() else 1
    made = []
    for number, value in enumerate(inputs):
        has_images = value.dim() > 0 and value.shape[0] == images
        if not value.is_floating_point():
            repeats = [-(-count // images), *[1] * (value.dim() - 1)]
            made.append(value.repeat(repeats)[:count] if has_images else value)
        else:
            shape = (count, *value.shape[1:]) if has_images else (1, *value.shape)
            drawn = image_ranges(shape, seed=seed + number).to(value)
            made.append(drawn if has_images else drawn[0])
    return tuple(made)


@torch.no_grad()
def shake(model: nn.Module) -> nn.Module:
    """Change, in place, every weight a little, and those that are zero altogether; the same way at every call."""
    generator = torch.Generator().manual_seed(0)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        is_statistic = name.endswith(("running_mean", "running_var"))
        if not value.is_floating_point() or not (isinstance(value, nn.Parameter) or is_statistic):
            continue
        # One number per output channel: fast, also for many weights.
        channels = (value.shape[0], *[1] * (value.dim() - 1)) if value.dim() else ()
        drawn = torch.randn(channels, generator=generator).clamp(-3, 3).to(value)
        if is_statistic or bool((value != 0).any()):
            value.mul_(1 + 0.1 * drawn)
        else:
            value.add_(drawn / max(value[0].numel() if value.dim() > 1 else 4, 1) ** 0.5)
    return model


def _as_they_are(batch: Images) -> Images:
    return batch


def _smaller(batch: Images) -> Images:
    """Return images of half the height and width or less, as long as they are larger than a few pixels."""
    made = []
    for value in batch:
        if value.dim() == 4 and value.is_floating_point() and min(value.shape[2:]) >= 2 * _LEAST_SIZE:
            times = min(4, min(value.shape[2:]) // _LEAST_SIZE)
            value = F.interpolate(value.float(), size=[size // times for size in value.shape[2:]]).to(value)
        made.append(value)
    return tuple(made)


def _refuse(model: nn.Module, reason: str) -> None:
    if reason == OTHER:
        reason = (
            "its traced graph computes something else on random images; it changes tensors in place or depends on more "
            "than its input, rewrite that part"
        )
    if reason:
        raise UnsupportedGraphError(f"model {type(model).__name__}: {reason}")


def source_line(error: Exception) -> str:
    """Return where in the model's own code something failed, for the error line; empty where that cannot be told."""
    own = Path(torch.__file__).parent, Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(Path(frame.filename).is_relative_to(folder) for folder in own) and frame.line:
            return f" ({Path(frame.filename).name}:{frame.lineno} `{frame.line.strip()}`)"
    return ""


def _does_not_run(model: nn.Module, inputs: Images, error: Exception) -> UnsupportedGraphError:
    shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
    cause = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    # What torch says of tensors that do not fit, and asserts; anything else is no matter of the input.
    is_size = isinstance(error, (RuntimeError, ValueError, AssertionError, IndexError))
    if "scalar type" in cause or "dtype" in cause.lower() or "should be the same" in cause:
        remedy = (
            "; weights and images differ in dtype there: give floating-point images, and let the forward keep "
            "their dtype"
        )
    elif is_size:
        remedy = "; give the input size and channels that the model was made for"
    else:
        remedy = "; the model's own forward fails: mend it"
    name = f"{type(model).__name__}{source_line(error)}"
    return UnsupportedGraphError(f"example_input of shape {shapes} does not run through {name}: {cause}{remedy}")
