"""Fields of table entries as plain Python values, whatever stands for them; cheap where they are that already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from layerfold.arguments import flag, number, shown, whole
from layerfold.errors import TableError, UsageError

_Entry = TypeVar("_Entry")
MOST_LAYERS = 4096
"""Layers of one chain: the solver's arrays grow with their square."""
LARGEST_POSITION = 1_000_000


def make_plain(
    entry: object,
    *,
    wholes: Sequence[str] = (),
    numbers: Sequence[str] = (),
    texts: Sequence[str] = (),
    flags: Sequence[str] = (),
    lists: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> None:
    """Turn fields of a frozen dataclass into what their kind says, in place.

    Args:
        entry: the entry.
        wholes, numbers, texts, flags: names of fields.
        lists: names of fields that are tuples of positions, or None.
        optional: those of them all that may be None.

    Raises:
        UsageError: something that is no such value.
    """
    for names, plain, convert in ((wholes, int, whole), (numbers, float, number), (flags, bool, flag)):
        for name in names:
            value = getattr(entry, name)
            if type(value) is not plain and not (value is None and name in optional):
                object.__setattr__(entry, name, plain(convert(name, value)))
    for name in texts:
        if not isinstance(getattr(entry, name), str):
            raise UsageError(f"{name}={shown(getattr(entry, name))}: must be text")
    for name in lists:
        value = getattr(entry, name)
        if value is not None:
            object.__setattr__(entry, name, positions(name, value))


def positions(name: str, value: object) -> tuple[int, ...]:
    """Return positions as a tuple, in the order given.

    Raises:
        UsageError: no list of whole numbers from 0 to a million.
    """
    values = as_tuple(value)
    if values is None:
        raise UsageError(f"{name}={shown(value)}: expected positions, such as [3, 7]")
    return tuple(whole(name, each, least=0, most=LARGEST_POSITION) for each in values)


def as_tuple(value: object) -> tuple[Any, ...] | None:
    """Return what a list, or anything else that can be gone through, holds; None for what cannot."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return tuple(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def entries_of(values: object, kind: type[_Entry], name: str = "entries") -> tuple[_Entry, ...]:
    """Return a list of one kind of things as a tuple.

    Raises:
        UsageError: something that is no list of them; ``name`` is the argument's.
    """
    found = as_tuple(values)
    if found is None:
        raise UsageError(f"{name}={shown(values)}: expected a list of layerfold.{kind.__name__}")
    for each in found:
        if not isinstance(each, kind):
            raise UsageError(f"{name}: {shown(each)}: expected a layerfold.{kind.__name__}")
    return found


def check_chain(chain: tuple[int, int], source: str) -> None:
    """Refuse a chain of more layers than any network has, before anything of its size is allocated.

    Raises:
        TableError: names the file.
    """
    if chain[1] - chain[0] > MOST_LAYERS:
        raise TableError(
            f"{source}: the chain {chain[0]}..{chain[1]} has {chain[1] - chain[0]} layers, expected at most "
            f"{MOST_LAYERS}; are st and end positions of layers?"
        )
