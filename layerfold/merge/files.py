"""Train form and deploy form on disk: weights as safetensors, and beside them how to build what they fit.

``NAME.safetensors`` holds the weights, ``NAME.safetensors.json`` the kind of form, the recipe, facts and the hash of
the weights. Nothing in either file is code: a form is built again from its model's source and its solution.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le
from torch import Tensor, fx, nn

from layerfold.arguments import shown
from layerfold.errors import SolutionError, UsageError, nearest_names
from layerfold.files import (
    JsonObject,
    JsonValue,
    file_sha256,
    json_text,
    parse_json,
    read_json,
    replacing_all,
    sidecar_path,
)
from layerfold.graph import Network, example_images, trace_network
from layerfold.graph.specs import ConvSpec, Shape
from layerfold.merge.algebra import AffineConv
from layerfold.merge.deploy_form import make_conv, merge_network, set_submodule
from layerfold.merge.train_form import build_train_form
from layerfold.models import load_model
from layerfold.solver import Solution

SCHEMA = 1
ACTIVATION_RANGES = "activation_ranges"
"""Where a form that was trained in int8 keeps the ranges of its feature maps: a key of ``module.meta``. They are
(low, high) by the name of the node of the deploy form that gives the feature map."""
Kind = Literal["train", "deploy"]
_REMEDY = "write the form again"
_KINDS: tuple[Kind, ...] = ("train", "deploy")
_MOST = 1_000_000
"""Channels, classes, or pixels along one side."""
_MOST_NUMBERS = 1 << 26
"""In one input image, or in one kernel of a form."""


_Count = Annotated[int, Ge(1), Le(_MOST)]
_Border = Annotated[int, Ge(-_MOST), Le(_MOST)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a form is built from nothing but names and positions.

    Attributes:
        model: source of the original as of ``load_model``; empty for a module that has no source.
        num_classes, in_channels: what ``load_model`` was given; None for the model's own.
        input_shape: (channels, height, width) that the network was traced with.
        exclude, merge_pooling: as of ``trace_network``.
        solution: what is merged.
    """

    model: str
    num_classes: int | None = None
    in_channels: int | None = None
    input_shape: Shape
    exclude: tuple[str, ...] = ()
    merge_pooling: bool = False
    solution: Solution

    def __post_init__(self) -> None:
        if len(self.input_shape) != 3 or not all(_is_count(size) for size in self.input_shape):
            raise UsageError(
                f"input_shape={shown(self.input_shape)}: expected (channels, height, width), each at least 1"
            )
        if math.prod(self.input_shape) > _MOST_NUMBERS:
            raise UsageError(
                f"input_shape={self.input_shape}: {math.prod(self.input_shape):,} numbers per image, "
                f"expected at most {_MOST_NUMBERS:,}"
            )

    def to_json(self) -> JsonObject:
        """Return plain values."""
        return {
            "model": self.model,
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "input_shape": list(self.input_shape),
            "exclude": list(self.exclude),
            "merge_pooling": self.merge_pooling,
            "solution": self.solution.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue], *, source: str = "recipe") -> Recipe:
        """Return what :meth:`to_json` wrote.

        Args:
            data: as it was read.
            source: what the error line begins with.

        Raises:
            UsageError, SolutionError: a missing field, or one that breaks a rule.
        """
        found = parse_json(json.dumps(data), _RecipeInFile, source=source, remedy=_REMEDY)
        try:
            return cls(
                model=found.model,
                num_classes=found.num_classes,
                in_channels=found.in_channels,
                input_shape=found.input_shape,
                exclude=tuple(found.exclude),
                merge_pooling=found.merge_pooling,
                solution=Solution.from_json(found.solution, source="solution"),
            )
        except (SolutionError, UsageError) as error:
            raise type(error)(f"{source}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _RecipeInFile:
    """A recipe in a file; see :class:`Recipe`."""

    model: str
    num_classes: _Count | None = None
    in_channels: _Count | None = None
    input_shape: tuple[int, int, int]
    exclude: list[str] = field(default_factory=list)
    merge_pooling: bool = False
    solution: JsonObject


@dataclass(frozen=True, kw_only=True)
class _Kernel:
    """What is left of a merged conv after zero borders were cut."""

    kernel_size: tuple[_Count, _Count]
    padding: tuple[tuple[_Border, _Border], tuple[_Border, _Border]]


@dataclass(frozen=True, kw_only=True)
class _Versioned:
    """What of a sidecar says whether the rest can be read."""

    schema: int


@dataclass(frozen=True, kw_only=True)
class _FormFile:
    """What a sidecar holds."""

    kind: Kind
    recipe: JsonObject
    facts: JsonObject
    kernels: dict[str, _Kernel] = field(default_factory=dict)
    activation_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    weights_sha256: str
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class LoadedForm:
    """A form read back.

    Attributes:
        module: in eval mode, in the dtype it was saved in.
        kind: ``train`` or ``deploy``.
        recipe: how it was built.
        facts: what was written with it, for example accuracies.
        net: the original network that its solution belongs to.
        weights_sha256: of the weights file.
    """

    module: fx.GraphModule
    kind: Kind
    recipe: Recipe
    facts: JsonObject = field(default_factory=dict)
    net: Network
    weights_sha256: str

    @property
    def batch_norm(self) -> str:
        """Where its BatchNorm statistics come from: ``original``, ``recalibrated``, ``finetuned``, ``none``.

        ``unknown`` for a form written before that was kept with it, where no other fact tells.
        """
        found = self.facts.get("batch_norm")
        if isinstance(found, str):
            return found
        if "finetune" in self.facts:
            return "finetuned"
        return "original" if "merge" in self.facts else "unknown"

    @property
    def example_input(self) -> Tensor:
        """A random image [1, channels, height, width] of the shape that the network was traced with."""
        return example_images((1, *self.recipe.input_shape))


def save_form(
    module: nn.Module, path: str | Path, *, kind: Kind, recipe: Recipe, facts: Mapping[str, JsonValue] | None = None
) -> None:
    """Write a form: weights to ``path``, everything else to ``<path>.json``; each by an atomic replace.

    Args:
        module: what ``build_train_form`` (kind ``train``) or ``merge_network`` (kind ``deploy``) returned.
        path: ends in ``.safetensors``; missing folders are made.
        kind: which form it is.
        recipe: how to build it again.
        facts: further plain values to keep, for example accuracies.

    Raises:
        UsageError: another suffix.
        WriteError: a place that cannot be written; the old pair of files stays.
    """
    from safetensors.torch import save_file

    from layerfold import __version__

    target = Path(path)
    if target.suffix != ".safetensors":
        raise UsageError(f"{target}: expected a name that ends in .safetensors")
    if kind not in _KINDS:
        raise UsageError(f"kind={kind!r}: must be one of {', '.join(_KINDS)}")
    # Clones, since the format takes no two names of one storage; loading writes equal values into both again.
    state = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}
    content: JsonObject = {
        "schema": SCHEMA,
        "kind": kind,
        "recipe": recipe.to_json(),
        "facts": dict(facts or {}),
        "kernels": _kernels(module),
    }
    ranges = getattr(module, "meta", {}).get(ACTIVATION_RANGES)
    if ranges is not None:
        content[ACTIVATION_RANGES] = {name: list(ends) for name, ends in ranges.items()}
    with replacing_all(target, sidecar_path(target)) as (partial, partial_sidecar):
        save_file(state, partial)
        content |= {"weights_sha256": file_sha256(partial), "version": __version__}
        # As text where facts come from a user's own data and are no plain values: nothing is lost by that.
        partial_sidecar.write_text(json_text(content), encoding="utf-8")


def load_form(path: str | Path, model: nn.Module | None = None) -> LoadedForm:
    """Read a form that :func:`save_form` wrote.

    Args:
        path: the ``.safetensors`` file; ``<path>.json`` must lie beside it.
        model: the original network, where the recipe names no source or another one is meant; left untouched.

    Raises:
        UsageError: a missing, foreign or broken file, or weights that do not fit the recipe; names the file.
        SolutionError: a solution that does not fit the model.
    """
    from layerfold import __version__

    path = Path(path)
    content = _read_sidecar(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file, though {sidecar_path(path).name} is there; write both again")
    weights_sha256 = file_sha256(path)
    if content.weights_sha256 != weights_sha256:
        raise UsageError(
            f"{path}: the weights are not those that {sidecar_path(path).name} was written for; write both again"
        )
    try:
        recipe = Recipe.from_json(content.recipe)
        module, net = _build(recipe, content.kind, model, content.kernels)
    except (SolutionError, UsageError) as error:
        raise type(error)(f"{path}: {error}") from error
    try:
        _load_weights(module, path)
    except UsageError as error:
        raise UsageError(
            f"{error}; was the model changed since? (layerfold {content.version} wrote it, this is {__version__})"
        ) from error
    if content.activation_ranges:
        module.meta[ACTIVATION_RANGES] = _checked_ranges(content.activation_ranges, sidecar_path(path))
    return LoadedForm(
        module=module.eval(),
        kind=content.kind,
        recipe=recipe,
        facts=content.facts,
        net=net,
        weights_sha256=weights_sha256,
    )


def _checked_ranges(ranges: dict[str, tuple[float, float]], sidecar: Path) -> dict[str, tuple[float, float]]:
    for name, ends in ranges.items():
        if not (all(map(math.isfinite, ends)) and ends[0] <= 0 <= ends[1]):
            raise UsageError(
                f"{sidecar}: activation_ranges: {shown(name)}: {shown(ends)} is no range of finite numbers around 0; "
                f"{_REMEDY}"
            )
    return ranges


def _read_sidecar(path: Path) -> _FormFile:
    sidecar = sidecar_path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: expected a .safetensors file of `layerfold finetune` or `layerfold merge`")
    if not path.exists() and not sidecar.exists():
        raise UsageError(f"{path}: no such file")
    if not os.path.lexists(sidecar):
        raise UsageError(
            f"{path}: no {sidecar.name} beside it; `layerfold finetune` and `layerfold merge` write both, "
            "and a file of weights alone does not say what they belong to"
        )
    schema = read_json(sidecar, _Versioned, remedy=_REMEDY).schema
    if schema != SCHEMA:
        raise UsageError(f"{sidecar}: schema {shown(schema)} is not known; this version reads {SCHEMA}")
    return read_json(sidecar, _FormFile, remedy=_REMEDY)


def _kernels(module: nn.Module) -> JsonObject:
    """Return, for each merged conv, the kernel and padding that are left after zero borders were cut."""
    found = getattr(module, "meta", {}).get("merged_convs", {})
    return {name: {"kernel_size": each.conv.kernel_size, "padding": each.conv.padding} for name, each in found.items()}


def _build(
    recipe: Recipe, kind: Kind, model: nn.Module | None, kernels: Mapping[str, _Kernel]
) -> tuple[fx.GraphModule, Network]:
    """Return the structure of a form, with weights that are still to be replaced."""
    if model is None:
        if not recipe.model:
            raise UsageError("was made from a module without a source; pass that module as model")
        loaded = load_model(recipe.model, num_classes=recipe.num_classes, in_channels=recipe.in_channels)
        model = loaded.module
    net = trace_network(
        model, example_images((1, *recipe.input_shape)), exclude=recipe.exclude, merge_pooling=recipe.merge_pooling
    )
    module = build_train_form(model, net, recipe.solution).eval()
    if kind == "train":
        return module, net
    merged = merge_network(module, tolerance=None, cut_borders=False)
    for name, each in merged.meta["merged_convs"].items():
        if name in kernels:
            set_submodule(merged, name, _empty_conv(each.conv, kernels[name], merged.get_submodule(name)))
    return merged, net


def _empty_conv(spec: ConvSpec, kernel: _Kernel, like: nn.Module) -> nn.Module:
    """Return a conv of another kernel and padding, its weights still to be replaced."""
    try:
        # Cutting zero borders leaves a kernel that is no larger, and moves the padding by as much: nothing is made
        # before that holds.
        if any(ours > most for ours, most in zip(kernel.kernel_size, spec.kernel_size, strict=True)):
            raise ValueError(f"the kernel is at most {spec.kernel_size}")
        spec = replace(spec, kernel_size=kernel.kernel_size, padding=kernel.padding)
        some = next(like.parameters())
        shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size)
        numbers = AffineConv(weight_OIHW=some.new_zeros(shape), bias=some.new_zeros(spec.out_channels))
        return make_conv(spec, numbers, some.dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"kernels: {shown(asdict(kernel))} is no kernel_size with a padding ({error}); {_REMEDY}"
        ) from error


def _load_weights(module: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path}: not a safetensors file ({' '.join(str(error).split())[:200]})") from error
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtypes.pop())
    expected = module.state_dict()
    for name in [*expected, *state]:
        if name not in state:
            raise UsageError(f"{path}: weight {name!r} is missing{nearest_names(name, state)}")
        if name not in expected:
            raise UsageError(f"{path}: weight {name!r} belongs nowhere in the model")
        if state[name].shape != expected[name].shape:
            raise UsageError(
                f"{path}: weight {name!r} has shape {tuple(state[name].shape)}, the model's is "
                f"{tuple(expected[name].shape)}"
            )
    module.load_state_dict(state)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST
