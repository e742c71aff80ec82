"""Weights from a file into a module, without running any code of that file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from layerfold.errors import UsageError, nearest_names
from layerfold.files import file_sha256
from layerfold.models._checkpoint import read_sets
from layerfold.models._choice import Fit, choose, fits_of


@dataclass(frozen=True, kw_only=True)
class TakenWeights:
    """Weights of a file that a module has taken.

    Attributes:
        sha256: of the file.
        key: the name of the set in the file; empty for one at its top.
        note: what there is to say about the choice, as one line; empty where the file holds nothing else.
    """

    sha256: str
    key: str
    note: str


def take_weights(
    module: nn.Module, path: str | Path, key: str | None = None, *, can_set_classes: bool = True
) -> TakenWeights:
    """Load weights of a file into a module, every key of it.

    A checkpoint may hold several sets: averaged ones (EMA, SWA) are taken where they fit, since they are what trainers
    score and publish; else the only one that fits. Counters named ``num_batches_tracked`` may be missing: old
    checkpoints have none, and nothing in eval mode reads them.

    Args:
        module: takes the weights, in its own dtypes.
        path: a .safetensors file, or what ``torch.save`` wrote.
        key: the set's name, for example ``ema`` or ``state_dict.model``; None for the choice above.
        can_set_classes: whether ``num_classes`` and ``in_channels`` can be given to whoever built the module.

    Raises:
        UsageError: no such file, not a weights file, a TorchScript archive, or a pickle with code in it; no set fits
            (the first key that is missing, unexpected or of another shape is named), several fit equally, or a tensor
            holds no finite numbers of the right kind.
    """
    path = Path(path)
    expected = module.state_dict()
    fits = fits_of(read_sets(path), expected)
    try:
        taken = choose(fits, key)
        if not taken.is_whole:
            raise UsageError(_misfit(taken, expected, can_set_classes=can_set_classes))
        values = {name: _checked(name, taken.state[name], expected[name]) for name in expected if name in taken.state}
    except UsageError as error:
        raise UsageError(f"weights={path}: {error}") from error
    module.load_state_dict(values, strict=False)
    return TakenWeights(sha256=file_sha256(path), key=taken.name, note=_note(path, taken, fits))


def _note(path: Path, taken: Fit, fits: list[Fit]) -> str:
    others = [fit for fit in fits if fit.is_whole and fit is not taken]
    unfit = [fit for fit in fits if fit.is_averaged and not fit.is_whole and fit.state]
    parts = []
    if others:
        parts.append(f"{', '.join(fit.called for fit in others[:4])} would fit, too: --weights-key chooses")
    if unfit:
        parts.append(f"{unfit[0].called} does not fit ({_first_fault(unfit[0])})")
    if taken.beside:
        parts.append(f"{len(taken.beside)} entries beside it are no part of the model, such as {taken.beside[0]!r}")
    if not parts and not taken.name:
        return ""
    return f"weights={path}: took {taken.called}{'; ' if parts else ''}{'; '.join(parts)}"


def _first_fault(fit: Fit) -> str:
    for what, keys in (
        ("is missing", fit.missing),
        ("is not in the model", fit.unexpected),
        ("has another shape", fit.wrong),
    ):
        if keys:
            return f"{keys[0]!r} {what}"
    return "nothing"


def _misfit(fit: Fit, expected: Mapping[str, Tensor], *, can_set_classes: bool) -> str:
    counts = f"{len(fit.missing)} missing, {len(fit.unexpected)} unexpected, {len(fit.wrong)} of another shape"
    where = f" in {fit.name!r}" if fit.name else ""
    if fit.missing:
        hint = nearest_names(fit.missing[0], fit.unexpected) or "; are these weights of another model?"
        return f"key {fit.missing[0]!r} is missing{where} ({counts}){hint}"
    if fit.unexpected:
        return f"key {fit.unexpected[0]!r}{where} is not in the model ({counts}); are these weights of another model?"
    key = fit.wrong[0]
    stored, wanted = tuple(fit.state[key].shape), tuple(expected[key].shape)
    remedy = "are these weights of another model?"
    if len(fit.wrong) <= 2 and stored[1:] == wanted[1:] and _is_last(key, expected):
        remedy = f"for a classifier of {stored[0]} classes "
        remedy += f"pass num_classes={stored[0]}" if can_set_classes else "let the factory build one"
    elif len(stored) == 4 and stored[0] == wanted[0] and stored[2:] == wanted[2:] and len(fit.wrong) == 1:
        remedy = f"for {stored[1]}-channel input "
        remedy += f"pass in_channels={stored[1]}" if can_set_classes else "let the factory build such a network"
    return f"key {key!r}{where} has shape {stored}, the model's is {wanted} ({counts}); {remedy}"


def _is_last(key: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether a key belongs to the last part of a model that has weights: its classifier."""
    return key.rpartition(".")[0] == list(expected)[-1].rpartition(".")[0]


def _checked(name: str, value: Tensor, wanted: Tensor) -> Tensor:
    """Return a tensor in the dtype of the model's own.

    Raises:
        UsageError: it is no plain tensor, of another kind of number, or not finite where the model's own is.
    """
    if value.is_quantized:
        raise UsageError(f"{name!r} is quantised ({_short(value.dtype)}); give the weights in floating point")
    if value.layout != torch.strided or value.is_nested:
        raise UsageError(f"{name!r} is sparse ({str(value.layout).removeprefix('torch.')}); save it with to_dense()")
    if value.is_meta:
        raise UsageError(f"{name!r} lies on the meta device, so it has no values; save the trained weights")
    if _kind(value) != _kind(wanted) and not name.endswith("num_batches_tracked"):
        is_quantised = (_kind(value), _kind(wanted)) == ("integer", "float")
        remedy = (
            "quantised weights need their scales, give them in floating point"
            if is_quantised
            else "are these weights of another model?"
        )
        raise UsageError(f"{name!r} is {_short(value.dtype)}, the model's is {_short(wanted.dtype)}; {remedy}")
    found = value.to(wanted.dtype)
    if _kind(wanted) == "float":
        bad = ~torch.isfinite(found)
        if bool(bad.any()) and bool(torch.isfinite(wanted).all()):
            raise UsageError(
                f"{name!r} holds {int(bad.sum())} of {bad.numel()} numbers that are NaN or infinite as "
                f"{_short(wanted.dtype)}; was the training stable?"
            )
        if name.endswith("running_var") and bool((found < 0).any()):
            raise UsageError(f"{name!r} holds a negative variance ({float(found.min()):.3g}); the file is damaged")
    return found


def _kind(value: Tensor) -> str:
    if value.is_complex():
        return "complex"
    if value.is_floating_point():
        return "float"
    return "bool" if value.dtype == torch.bool else "integer"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
