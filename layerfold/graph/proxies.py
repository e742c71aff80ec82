"""What stands for a value while a model is traced: a torch.fx proxy that knows the value on the example input.

Code that asks what the example input decides, its shape, dtype or kind, is answered: ``if x.shape[1] == 3``,
``isinstance(x, torch.Tensor)``, ``range(x.shape[2])``, ``h, w = x.shape[-2:]``. Two things are never decided: what
depends on the values in a tensor, and what would be otherwise for another number of images, since exports and data
loaders run batches of their own sizes.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import fx
from torch.fx.proxy import TraceError

from layerfold.graph.knowledge import Known, evaluate, holds_tensor

_OF_VALUES = "control flow that depends on the values of a tensor"
_OF_BATCH = "control flow that depends on the number of images in a batch"


class UndecidedError(TraceError):
    """A model's code decides by something that tracing does not know."""


class ValueProxy(fx.Proxy):
    """A proxy that may know its value.

    Attributes:
        known: what is known; None where nothing is.
    """

    known: Known | None = None

    def __getattr__(self, k: str) -> Any:
        known = known_of(self)
        if known is not None and not hasattr(known.value, k):
            raise AttributeError(f"{type(known.value).__name__!r} object has no attribute {k!r}")
        return ValueAttribute(self, k)

    # What `isinstance` asks. (No zero-argument `super()` in this class: it reads the same name.)
    __class__ = property(lambda self: _class_of(self))

    def decided(self) -> Any:
        """Return the value, for code that goes on by it.

        Raises:
            UndecidedError: it is not known, or depends on more than the example input's shape and kind.
        """
        known = known_of(self)
        if known is None or holds_tensor(known.value):
            raise UndecidedError(_OF_VALUES)
        if known.follows_batch:
            raise UndecidedError(_OF_BATCH)
        return known.value

    def __iter__(self) -> Iterator[Any]:
        known = known_of(self)
        value: Any = None if known is None else known.value
        own: Any = self
        if isinstance(value, (dict, str)):
            return iter(value)
        is_constant = known is not None and isinstance(value, torch.Tensor) and not known.counts_images
        if (is_constant and bool(value.dim())) or isinstance(value, (tuple, list)):
            return (own[i] for i in range(len(own)))
        # An unpacking like `q, k, v = x` says itself how many there are.
        frame: Any = inspect.currentframe()
        count = _unpacked(frame.f_back)
        if count is None:
            raise UndecidedError(_OF_BATCH if isinstance(value, torch.Tensor) and value.dim() else _OF_VALUES)
        return (own[i] for i in range(count))

    def __len__(self) -> int:
        length = evaluate(len, (self,), {})
        if length is None:
            raise UndecidedError(_OF_VALUES)
        if length.follows_batch:
            raise UndecidedError(_OF_BATCH)
        return int(length.value)

    def __bool__(self) -> bool:
        return bool(self.decided())

    def __int__(self) -> int:
        return int(self.decided())

    def __index__(self) -> int:
        value = self.decided()
        if not isinstance(value, int):
            raise TypeError(f"{type(value).__name__!r} object cannot be interpreted as an integer")
        return value

    def __float__(self) -> float:
        return float(self.decided())

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.decided(), digits)

    def __contains__(self, item: Any) -> bool:
        return any(bool(each == item) for each in self)

    def __hash__(self) -> int:
        try:
            return hash(self.decided())
        except (UndecidedError, TypeError):
            return id(self)

    def __repr__(self) -> str:
        known = known_of(self)
        return fx.Proxy.__repr__(self) if known is None or holds_tensor(known.value) else repr(known.value)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        known = known_of(self)
        return str(self) if known is None or holds_tensor(known.value) else format(known.value, spec)

    def __setitem__(self, index: Any, value: Any) -> None:
        changed = self.tracer.create_proxy("call_function", with_item, (self, index, value), {})
        self.node, self.known = changed.node, known_of(changed)


class ValueAttribute(ValueProxy):
    """An attribute of a proxy: a node of its own, unless it is called as a method (as ``torch.fx.proxy.Attribute``)."""

    def __init__(self, root: ValueProxy, attr: str) -> None:
        self.root, self.attr, self.tracer = root, attr, root.tracer
        self._node: fx.Node | None = None
        self.known = evaluate(getattr, (root, attr), {})

    @property
    def node(self) -> fx.Node:
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    @node.setter
    def node(self, node: fx.Node) -> None:
        self._node = node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        known, root = known_of(self.root), cast(Any, self.root)
        if known is not None and isinstance(known.value, dict) and self.attr in ("keys", "values", "items"):
            pairs = [(key, root[key]) for key in known.value]
            return [pair[0] if self.attr == "keys" else pair[1] if self.attr == "values" else pair for pair in pairs]
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def known_of(proxy: fx.Proxy) -> Known | None:
    """Return what a proxy knows, without asking it for an attribute that its value might have."""
    known: Known | None = proxy.__dict__.get("known")
    return known


def _class_of(proxy: fx.Proxy) -> type:
    known = known_of(proxy)
    return type(proxy) if known is None else type(known.value)


def with_item(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """Return a copy of ``x`` in which ``x[index] = value``."""
    changed = x.clone()
    changed[index] = value
    return changed


def _unpacked(frame: Any) -> int | None:
    """Return how many names ``a, b = proxy`` has, where that is what a frame does; else None."""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return int(instruction.argval) if instruction.opname == "UNPACK_SEQUENCE" else None
    return None
