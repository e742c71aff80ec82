"""Where a table's numbers come from: the sidecar ``<name>.csv.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NoReturn

from annotated_types import Ge, Le, MaxLen

from layerfold.arguments import shown
from layerfold.errors import ProvenanceMismatchError, TableError
from layerfold.files import Count, Finite, JsonObject, JsonValue, parse_json, read_bytes, sidecar_path
from layerfold.tables.fields import LARGEST_POSITION, as_tuple

SCHEMA = 1
_REMEDY = "delete it or write the table again"
_MOST_BYTES = 256 << 20
_Size = Annotated[int, Ge(1), Le(2**31 - 1)]
_Position = Annotated[int, Ge(0), Le(LARGEST_POSITION)]
_Pair = tuple[_Position, _Position]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts about one table; every field may be unknown (a published file has no sidecar).

    Attributes:
        schema: version of the sidecar's layout.
        kind: ``latency``, ``importance``, ``optimal-latency`` or ``extended-importance``.
        model: what the user called the model, for example ``timm:mobilenetv2_100``.
        model_hash: hash of the weights, where the numbers depend on them.
        network_hash: hash of the traced description (``Network.hash``).
        input_shape: shape of the input; the last three numbers are (channels, height, width).
        batch: batch size of one forward pass.
        dtype, device, driver, backend: what it was measured with.
        versions: package name to version.
        fixed_ms: latency outside the chains, at least 0; 0 where unknown.
        scale: predicted latency = fixed_ms + scale * sum of entries; above 0.
        chains: (start, end) of every chain; empty where unknown.
        options: settings of the step that wrote the table.
        measurement: of a latency table: counts of measurements (settled or not, outliers), the conditions of the
            machine with warnings, and the segments that could not be built, with the reason.
        backend_options: the backend's own: threads, precision, layout and whatever else changes latency.
        date: ISO 8601, UTC.
        left_out: segments that an importance table leaves out on purpose, because merging them whole is not
            faster than merging them in parts.
        notes: free text.

    Example:
        >>> provenance = lf.Provenance(model="mine", device="my board", fixed_ms=0.4, chains=((0, 3),))
        >>> lf.Provenance.from_json(provenance.to_json(), source="mine.json").device
        'my board'
    """

    schema: int = SCHEMA
    kind: str = ""
    model: str = ""
    model_hash: str = ""
    network_hash: str = ""
    input_shape: tuple[int, ...] = ()
    batch: int | None = None
    dtype: str = ""
    device: str = ""
    driver: str = ""
    backend: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    fixed_ms: float = 0.0
    scale: float = 1.0
    chains: tuple[tuple[int, int], ...] = ()
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    measurement: Mapping[str, JsonValue] = field(default_factory=dict)
    backend_options: Mapping[str, JsonValue] = field(default_factory=dict)
    date: str = ""
    left_out: tuple[tuple[int, int], ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        if not (_is_number(self.fixed_ms) and 0.0 <= self.fixed_ms < 1e9):
            raise TableError(f"fixed_ms={shown(self.fixed_ms)}: expected milliseconds from 0 to 1e9")
        if not (_is_number(self.scale) and 0.0 < self.scale < 1e9):
            raise TableError(f"scale={shown(self.scale)}: expected a factor above 0 and below 1e9")
        for name in ("chains", "left_out"):
            pairs = as_tuple(getattr(self, name))
            if pairs is None or not all(_is_int_pair(pair) for pair in pairs):
                found = shown(getattr(self, name))
                raise TableError(f"{name}={found}: expected a list of [start, end] pairs of positions")
            object.__setattr__(self, name, tuple((pair[0], pair[1]) for pair in pairs))
        stop = None
        for start, end in self.chains:
            if start < 0 or start >= end or (stop is not None and start < stop):
                raise TableError(
                    f"chains={shown(list(map(list, self.chains)))}: expected [start, end] pairs with "
                    "0 <= start < end, in rising order, without overlap"
                )
            stop = end

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd about the machine while a latency table was measured, each in one sentence."""
        conditions = self.measurement.get("conditions")
        found = conditions.get("warnings") if isinstance(conditions, Mapping) else None
        return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()

    def to_json(self) -> JsonObject:
        """Return what the sidecar holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue], *, source: str) -> Provenance:
        """Check what a sidecar holds and return it; keys that this version does not know are ignored.

        Raises:
            TableError: a field of the wrong type or out of its range; names ``source`` and the field.
        """
        return _parsed(json.dumps(data), source)[0]


def read_sidecar(table_path: Path) -> tuple[Provenance, int | None]:
    """Return the provenance beside a table and the number of rows it promises; unknown where there is no sidecar."""
    path = sidecar_path(table_path)
    if not os.path.lexists(path):
        return Provenance(), None
    return _parsed(read_bytes(path, most_bytes=_MOST_BYTES, remedy=_REMEDY, error=TableError), str(path))


@dataclass(frozen=True, kw_only=True)
class _Versioned:
    """What of a sidecar says whether the rest can be read."""

    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class _Sidecar:
    """What a sidecar holds; see :class:`Provenance`. None is unknown, as what is not there.

    Attributes:
        rows: of the table beside it.
    """

    kind: str | None = None
    model: str | None = None
    model_hash: str | None = None
    network_hash: str | None = None
    input_shape: Annotated[list[_Size], MaxLen(8)] | None = None
    batch: _Size | None = None
    dtype: str | None = None
    device: str | None = None
    driver: str | None = None
    backend: str | None = None
    versions: dict[str, str | int | float | None] | None = None
    fixed_ms: Finite | None = None
    scale: Finite | None = None
    chains: list[_Pair] | None = None
    options: JsonObject | None = None
    measurement: JsonObject | None = None
    backend_options: JsonObject | None = None
    date: str | None = None
    left_out: list[_Pair] | None = None
    notes: str | None = None
    rows: Count | None = None


def _parsed(content: bytes | str, source: str) -> tuple[Provenance, int | None]:
    schema = parse_json(content, _Versioned, source=source, remedy=_REMEDY, error=TableError).schema
    if schema != SCHEMA:
        raise TableError(
            f"{source}: schema {shown(schema)} is not known; this version reads schema {SCHEMA}, upgrade layerfold"
        )
    found = parse_json(content, _Sidecar, source=source, remedy=_REMEDY, error=TableError)
    known = {name: value for name, value in vars(found).items() if name != "rows" and value is not None}
    if found.versions is not None:
        known["versions"] = {name: str(version) for name, version in found.versions.items()}
    try:
        return Provenance(**{**known, "input_shape": tuple(found.input_shape or ())}), found.rows
    except TableError as error:
        raise TableError(f"{source}: {error}") from None


def check_same_source(
    first: Provenance, second: Provenance, names: tuple[str, str], *, ignore: tuple[str, ...] = ()
) -> None:
    """Refuse two tables that were not measured alike; what one of them does not know is not compared.

    Raises:
        ProvenanceMismatchError: names both tables, the field and both values.
    """
    for name in ("network_hash", "device", "dtype", "backend", "batch", "input_shape"):
        if name in ignore:
            continue
        ours, theirs = getattr(first, name), getattr(second, name)
        if name == "input_shape":
            ours, theirs = ours[-3:], theirs[-3:]
        if ours in ("", None, ()) or theirs in ("", None, ()) or ours == theirs:
            continue
        _refuse(names, name, ours, theirs)
    for name in sorted(first.backend_options.keys() & second.backend_options.keys()):
        ours, theirs = first.backend_options[name], second.backend_options[name]
        if ours != theirs and "backend" not in ignore:
            _refuse(names, name, ours, theirs)


def _refuse(names: tuple[str, str], what: str, ours: object, theirs: object) -> NoReturn:
    raise ProvenanceMismatchError(
        f"{names[0]} and {names[1]}: {what} differs ({_show(ours)} and {_show(theirs)}); "
        "tables of different sources are never mixed, measure one of them again"
    )


def _show(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_int_pair(pair: object) -> bool:
    return (
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and all(_is_int(position) and 0 <= position <= LARGEST_POSITION for position in pair)
    )
