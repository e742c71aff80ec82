"""Levers: the kinds of change that a solver may choose. What each must say, and where it is found by its name.

A lever is one file with a subclass of :class:`Lever`, and its line in ``_OWN`` or an entry point ``layerfold.levers``.
Everything else, from tables to train forms, handles a :class:`Change` without asking which lever made it. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from layerfold.errors import LayerfoldError, UsageError
from layerfold.plugins import entry_points_of, load_part
from layerfold.tables._csv import Row as Row

if TYPE_CHECKING:
    from torch import nn

    from layerfold.graph.candidates import CandidateRules
    from layerfold.graph.description import Layer, Segment
    from layerfold.graph.network import Network
    from layerfold.tables import ImportanceEntry, LatencyEntry

DROP = "drop"
"""The lever whose changes stand in the published columns of tables, and in ``kept_layers`` of solutions."""

MERGE_WORDS = ("keep", "merge")
"""What a segment's ``plan`` says where no layer is changed: one layer alone, or several merged."""

GROUP = "layerfold.levers"
"""The entry-point group: ``name = "package.module:Class"``, in any installed package."""

_OWN = {"merge": "layerfold.levers.merge:Merge", DROP: "layerfold.levers.drop:Drop"}
_LAYERS = re.compile(r"\d{1,7}(?: \d{1,7})*")


class Change(NamedTuple):
    """What a lever does to layers of one segment.

    Attributes:
        word: the lever's name, and behind a colon what else there is to say, such as ``halve`` or ``nm:2of4``.
        layers: the layers that it changes, rising; None where a table does not say.

    Example:
        >>> from layerfold.tables.levers import Change
        >>> Change("nm:2of4", (2, 3, 5)).within(1, 3)
        Change(word='nm:2of4', layers=(2, 3))
    """

    word: str
    layers: tuple[int, ...] | None

    @property
    def lever(self) -> str:
        """The lever's name."""
        return self.word.partition(":")[0]

    def within(self, start: int, end: int) -> Change | None:
        """Return what of it lies in layers start+1..end; None where nothing does."""
        inside = tuple(index for index in self.layers or () if start < index <= end)
        return Change(self.word, inside) if inside else None


def changes_within(changes: Iterable[Change], start: int, end: int) -> list[Change]:
    """Return what of some changes lies in layers start+1..end."""
    return [part for each in changes if (part := each.within(start, end)) is not None]


class Lever:
    """One kind of change; a subclass says what is special of it.

    Attributes:
        name: what ``levers``, a segment's ``plan`` and a change's word call it.
        columns: the columns of tables that its changes stand in.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("merged", "variant", "layers")

    def options(self, net: Network, rules: CandidateRules) -> list[Segment]:
        """Return the segments that it adds to a network's candidates, each of another key."""
        raise NotImplementedError

    def changed_layer(self, layer: Layer, word: str) -> Layer:
        """Return what a layer becomes: the same shapes, computed in another way."""
        raise NotImplementedError

    def make_layer(self, module: nn.Module, layer: Layer) -> nn.Module:
        """Return the module of a changed layer for the train form.

        Args:
            module: the original layer's; it stays as it is. Training shared by many networks (``shared``) reaches only
                parameters that the new module takes over from it.
            layer: as :meth:`changed_layer` describes it.
        """
        raise NotImplementedError

    def cells(self, entry: LatencyEntry | ImportanceEntry) -> Mapping[str, object]:
        """Return what stands in its columns in the row of an entry, which may be none of its own."""
        change = entry.change if entry.change is not None and entry.change.lever == self.name else None
        if change is None:
            return {}
        return {"merged": entry.merged, "variant": change.word, "layers": " ".join(map(str, change.layers or ()))}

    def changes_in(self, rows: Sequence[Row], kernels: Sequence[str], *, must_say: bool) -> list[Change | None]:
        """Return its changes in a table, row by row.

        Args:
            rows: of one table, their ``st`` and ``end`` checked.
            kernels: the merged kernel of each, empty where the table does not say.
            must_say: whether the layers have to be there.

        Raises:
            TableError: a cell that is not what its column holds.
        """
        found: list[Change | None] = []
        for row, kernel in zip(rows, kernels, strict=True):
            word, layers = row.cells.get("variant", ""), row.cells.get("layers", "")
            if word.partition(":")[0] != self.name:
                found.append(None)
                continue
            if not kernel.endswith(f" +{word}"):
                raise row.error("merged", f"the merged kernel with its change, such as '3x3 +{word}'")
            numbers = tuple(map(int, layers.split())) if _LAYERS.fullmatch(layers) else ()
            inside = all(row.position("st") < index <= row.position("end") for index in numbers)
            if not (numbers and inside and numbers == tuple(sorted(set(numbers)))):
                raise row.error("layers", f"layers of the segment that {word} changes, rising, with blanks between")
            found.append(Change(word, numbers))
        return found

    def phrase(self, change: Change) -> str:
        """Return a change in words, to stand behind what a segment becomes."""
        return f"with {change.word} of {','.join(map(str, change.layers or ()))}"


def lever_names() -> tuple[str, ...]:
    """Return the names of all levers: layerfold's own, then those that other packages register."""
    return (*_OWN, *sorted(set(entry_points_of(GROUP)) - set(_OWN)))


def lever_of(word: str, what: str = "lever", error: type[LayerfoldError] = UsageError) -> Lever:
    """Return the lever of a name, or of a change's word; it is imported when it is first asked for.

    Args:
        word: its name, perhaps with a colon and more.
        what: the argument or field that named it, for messages.
        error: what is raised where there is none.

    Example:
        >>> from layerfold.tables.levers import lever_of
        >>> lever_of("drop").columns
        ('ker', 'str', 'is_dw', 'conv_comb', 'merged')
    """
    try:
        return _loaded(word.partition(":")[0])
    except KeyError:
        raise error(f"{what}={word!r}: no lever of that name; known are {', '.join(lever_names())}") from None


@cache
def _loaded(name: str) -> Lever:
    entry = EntryPoint(name, _OWN[name], GROUP) if name in _OWN else entry_points_of(GROUP)[name]
    members = ("name", *(each for each in vars(Lever) if not each.startswith("_")))
    made: Lever = load_part(
        entry, f"lever {name!r}", kind="lever", members=members, guide="docs/design.md", error=UsageError
    )()
    if made.name != name:
        raise UsageError(f"lever {name!r} ({entry.value}) calls itself {made.name!r}; register it by that name")
    return made
