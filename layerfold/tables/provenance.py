"""Where a table's numbers come from: the sidecar ``<name>.csv.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

from layerfold.arguments import shown
from layerfold.errors import ProvenanceMismatchError, TableError
from layerfold.files import read_json, sidecar_path
from layerfold.tables.fields import LARGEST_POSITION, as_tuple

SCHEMA = 1
_TEXT = ("kind", "model", "model_hash", "network_hash", "dtype", "device", "driver", "backend", "date", "notes")


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
    options: Mapping[str, Any] = field(default_factory=dict)
    measurement: Mapping[str, Any] = field(default_factory=dict)
    backend_options: Mapping[str, Any] = field(default_factory=dict)
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

    def to_json(self) -> dict[str, Any]:
        """Return what the sidecar holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object, *, source: str) -> Provenance:
        """Check a parsed sidecar and return it; keys that this version does not know are ignored.

        Raises:
            TableError: a field of the wrong type or out of its range; names ``source`` and the field.
        """
        if not isinstance(data, dict):
            raise TableError(f"{source}: expected a JSON object, got {type(data).__name__}")
        if data.get("schema", SCHEMA) != SCHEMA:
            raise TableError(
                f"{source}: schema {shown(data['schema'])} is not known; "
                f"this version reads schema {SCHEMA}, upgrade layerfold"
            )
        known = {each.name for each in fields(cls)}
        found = {name: value for name, value in data.items() if name in known and value is not None}
        for name in _TEXT:
            if not isinstance(found.get(name, ""), str):
                raise TableError(f"{source}: {name}={shown(found[name])}: expected text")
        for name in ("versions", "options", "measurement", "backend_options"):
            if not isinstance(found.get(name, {}), dict):
                raise TableError(f"{source}: {name}={shown(found[name])}: expected a JSON object")
        for name in ("chains", "left_out"):
            pairs = found.get(name, [])
            if not (isinstance(pairs, list) and all(_is_int_pair(pair) for pair in pairs)):
                raise TableError(f"{source}: {name}={shown(pairs)}: expected a list of [start, end] pairs of positions")
            found[name] = tuple((pair[0], pair[1]) for pair in pairs)
        shape = found.get("input_shape", [])
        if not (
            isinstance(shape, list) and len(shape) <= 8 and all(_is_int(size) and 0 < size < 2**31 for size in shape)
        ):
            raise TableError(f"{source}: input_shape={shown(shape)}: expected a list of sizes of at least 1")
        found["input_shape"] = tuple(shape)
        if not (_is_int(found.get("batch", 1)) and 1 <= found.get("batch", 1) < 2**31):
            raise TableError(f"{source}: batch={shown(found['batch'])}: expected a whole number of at least 1")
        try:
            return cls(**found)
        except TableError as error:
            raise TableError(f"{source}: {error}") from None


def read_sidecar(table_path: Path) -> tuple[Provenance, int | None]:
    """Return the provenance beside a table and the number of rows it promises; unknown where there is no sidecar."""
    path = sidecar_path(table_path)
    if not os.path.lexists(path):
        return Provenance(), None
    data = read_json(path, dict[str, Any], remedy="delete it or write the table again", error=TableError)
    provenance = Provenance.from_json(data, source=str(path))
    rows = data.get("rows")
    if rows is not None and not (_is_int(rows) and 0 <= rows < 2**53):
        raise TableError(f"{path}: rows={shown(rows)}: expected a whole number")
    return provenance, rows


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
