"""What is known of a traced value: its value on the example input, and what it would be for other batches.

Tensors are computed as they are. Of plain values, sizes above all, those for other batches stand beside: worked out
from the same code on tensors with more images and with one, which hold no numbers. Where they differ, a value follows
the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from layerfold.graph.elementwise import Kwargs

_MORE_IMAGES = (1, 508)
_OTHER_BATCHES = 1 + len(_MORE_IMAGES)
"""One image alone, for which code often does something else, and more images than the example input has."""
_OF_SHAPE = frozenset({"shape", "size", "numel", "nelement", "nbytes", "len"})
_OF_KIND = frozenset(
    {
        "dim",
        "ndim",
        "ndimension",
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "element_size",
        "itemsize",
        "type",
        "get_device",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "is_cuda",
        "is_cpu",
        "is_meta",
        "is_mps",
        "is_xpu",
        "is_quantized",
        "is_sparse",
        "is_mkldnn",
        "is_nested",
        "is_leaf",
        "is_inference",
        "is_tensor",
        "is_signed",
        "is_conj",
        "is_neg",
        "names",
        "stride",
        "storage_offset",
    }
)


@dataclass(frozen=True)
class Known:
    """Known facts of a value.

    Attributes:
        value: on the example input.
        others: for a single image and for batches with more images; of a tensor, the tensor itself each time.
        images: how many images the example input has, for what was computed from it; 0 for constants.
    """

    value: Any
    others: tuple[Any, ...]
    images: int

    @classmethod
    def of(cls, value: Any, images: int = 0) -> Known:
        """Return what is known of a value that is the same for every batch, or of a tensor."""
        return cls(value, (value,) * _OTHER_BATCHES, images)

    @property
    def follows_batch(self) -> bool:
        """Whether a plain value would be another for one image or for more."""
        return any(differ(other, self.value) for other in self.others)

    @property
    def counts_images(self) -> bool:
        """Whether the first axis of a tensor counts images, or parts of images, as far as its size tells."""
        shape = self.value.shape
        return self.images > 0 and len(shape) > 0 and shape[0] > 0 and shape[0] % self.images == 0

    def in_batch(self, number: int) -> Any:
        """Return the value in the other batch of that number; for a tensor, one of the same kind without numbers."""
        other = self.others[number]
        if not isinstance(other, torch.Tensor) or not self.counts_images:
            return other
        parts = other.shape[0] // self.images
        images = self.images + _MORE_IMAGES[number - 1] if number else 1
        return other.new_empty((parts * images, *other.shape[1:]), device="meta")


class _Unknown:
    """Stands for what could not be worked out for another batch: it equals nothing."""


def evaluate(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs, name: str = "") -> Known | None:
    """Return what is known of ``call(*args, **kwargs)``, proxies standing for their values; None where nothing is.

    Args:
        call: what computes it.
        name: what it is called, where that is not the name of ``call``.
    """
    found = [each.__dict__.get("known") for each in _proxies((args, kwargs))]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    images = max((each.images for each in known), default=0)
    try:
        value = _call(call, args, kwargs, lambda each: each.value)
    except Exception:
        return None  # where it matters, the model's own run says why
    if holds_tensor(value):
        return Known.of(value, images)
    if any(holds_tensor(each.value) for each in known):
        asked = str(args[1]) if call is getattr else name or getattr(call, "__name__", "")
        if asked in _OF_KIND or callable(value):
            return Known.of(value, images)
        if asked not in _OF_SHAPE:
            return None
    others = tuple(_attempt(call, args, kwargs, number) for number in range(_OTHER_BATCHES))
    return Known(value, others, images)


def holds_tensor(value: Any) -> bool:
    """Say whether a value is a tensor, or a collection with one in it."""
    if isinstance(value, dict):
        return any(holds_tensor(each) for each in value.values())
    if isinstance(value, (list, tuple)):
        return any(holds_tensor(each) for each in value)
    return isinstance(value, torch.Tensor)


def differ(one: Any, other: Any) -> bool:
    """Say whether two plain values differ, or cannot be compared."""
    try:
        return not bool(one == other)
    except Exception:
        return True


def _attempt(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs, number: int) -> Any:
    try:
        return _call(call, args, kwargs, lambda known: known.in_batch(number))
    except Exception:
        return _Unknown()


def _call(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs, pick: Callable[[Known], Any]) -> Any:
    real_args, real_kwargs = _mapped((args, kwargs), lambda proxy: pick(proxy.__dict__["known"]))
    with torch.no_grad():
        return call(*real_args, **real_kwargs)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to every proxy in nested arguments. Asked by type: a proxy says it is something else."""
    kind = type(value)
    if issubclass(kind, fx.Proxy):
        return change(value)
    if issubclass(kind, tuple):
        parts = [_mapped(each, change) for each in value]
        return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)
    if issubclass(kind, list):
        return [_mapped(each, change) for each in value]
    if issubclass(kind, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    if issubclass(kind, slice):
        return slice(*(_mapped(each, change) for each in (value.start, value.stop, value.step)))
    return value


def _proxies(value: Any) -> Iterator[Any]:
    found: list[Any] = []
    _mapped(value, lambda proxy: found.append(proxy))
    return iter(found)
