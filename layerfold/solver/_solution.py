"""The answer: where activations stay, where merging stops, and what that costs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen

from layerfold.arguments import shown, whole
from layerfold.errors import OptionalDependencyError, SolutionError, UsageError
from layerfold.files import Finite, JsonObject, JsonValue, parse_json, read_bytes, replacing, write_json
from layerfold.tables.fields import LARGEST_POSITION, as_tuple
from layerfold.tables.kernel import SegmentKey, is_kernel_text
from layerfold.tables.levers import DROP, MERGE_WORDS, Change, changes_within
from layerfold.torch_files import load_torch_file, plain_array, stands_for

SCHEMA = 1
_REMEDY = "expected a solution file: a JSON object with act_pos and merge_pos"
_Position = Annotated[int, Ge(0), Le(LARGEST_POSITION)]


@dataclass(frozen=True, kw_only=True)
class SolutionSegment:
    """One segment of a solution.

    Attributes:
        start, end: positions; layers start+1..end become one conv.
        plan: ``keep`` for a single layer, ``merge`` for several as they are, ``drop`` where some do not stay, or the
            word of another lever (``layerfold.tables.levers``).
        latency_ms: the table's entry; None if unknown.
        kernel: where a lever changes layers, the merged kernel by which latency tables know it, for example ``3x3``, or
            ``identity`` where nothing stays; else empty.
        layers: those that a lever other than ``drop`` changes, rising; else empty.
    """

    start: int
    end: int
    plan: str = "merge"
    latency_ms: float | None = None
    kernel: str = ""
    layers: tuple[int, ...] = ()

    @property
    def change(self) -> Change | None:
        """What a lever other than ``drop`` changes, of which ``Solution.kept_layers`` speaks; None for nothing."""
        return None if self.plan in (*MERGE_WORDS, DROP) else Change(self.plan, self.layers)

    @property
    def key(self) -> SegmentKey:
        """What latency tables know it by."""
        return (self.start, self.end, self.kernel) if self.kernel else (self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Which activations stay (A), where merging stops (S), and which layers stay.

    By hand: ``Solution(act_pos=[1, 3], merge_pos=[1, 2, 3])``, or with ``kept_layers=[1, 3]`` to drop layer 2.

    Attributes:
        act_pos: positions with an activation, rising. A solver's solution holds a chain's end too if the original
            keeps an activation there.
        merge_pos: positions where merging stops, rising; ``act_pos`` is a subset of it. A 0, which published files
            have for the network's input, is dropped from both.
        kept_layers: the layers that stay, rising, of all chains; None for every one. Whether the others can go is
            checked against the network, when a form is built.
        model: what the user called the model.
        network_hash: ``Network.hash`` of the network it was made for; empty if unknown.
        budget_ms: the end-to-end budget it was chosen for.
        predicted_ms: fixed + scale * sum of the table's entries.
        measured_ms: measured end-to-end latency of the merged network.
        importance: sum of importances, in points.
        segments: what is merged; what a lever other than ``drop`` changes stands here only.
        table_hashes: name of a table to its hash.
        version: version of layerfold that made it.
        status: ``optimal`` (proven), ``within`` (proven to miss the best importance by at most ``gap``), or
            ``given`` (by hand, from a file that does not say, or by a search that leaves options out).
        gap: points of importance that a better solution could have at most; 0 if optimal, None if unknown.
        costs: further costs by name (a second device, parameters, ...).

    Raises:
        SolutionError: positions that are no whole numbers above 0, or an ``act_pos`` that is not in ``merge_pos``.

    Example:
        >>> solution = lf.Solution(act_pos=[1, 3], merge_pos=[1, 3])
        >>> solution.structure
        ((1, 3), (1, 3), None)
        >>> solution.write("solution.json")
        >>> lf.Solution.read("solution.json") == solution
        True
    """

    act_pos: tuple[int, ...]
    merge_pos: tuple[int, ...]
    kept_layers: tuple[int, ...] | None = None
    model: str = ""
    network_hash: str = ""
    budget_ms: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None
    importance: float | None = None
    segments: tuple[SolutionSegment, ...] = ()
    table_hashes: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    status: str = "given"
    gap: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "act_pos", _positions(self.act_pos, "act_pos"))
        object.__setattr__(self, "merge_pos", _positions(self.merge_pos, "merge_pos"))
        if self.kept_layers is not None:
            object.__setattr__(self, "kept_layers", _positions(self.kept_layers, "kept_layers"))
        alone = [position for position in self.act_pos if position not in set(self.merge_pos)]
        if alone:
            raise SolutionError(
                f"act_pos={shown(alone)}: not in merge_pos; an activation can only stay where merging stops, add it "
                "there"
            )

    @property
    def changes(self) -> tuple[Change, ...]:
        """What levers other than ``drop`` change, by position; ``kept_layers`` says what is dropped."""
        return tuple(each.change for each in self.segments if each.change is not None)

    def changes_within(self, start: int, end: int) -> list[Change]:
        """Return all that is changed, dropped layers included, in layers start+1..end."""
        kept = None if self.kept_layers is None else set(self.kept_layers)
        lost = tuple(index for index in range(start + 1, end + 1) if kept is not None and index not in kept)
        return changes_within((Change(DROP, lost), *self.changes), start, end)

    @property
    def plan(self) -> tuple[object, ...]:
        """What decides the structure but for activations: merge positions, kept layers, and changes if there are."""
        return (self.merge_pos, self.kept_layers, *self.changes)

    @property
    def structure(self) -> tuple[object, ...]:
        """What decides the network: activations, merge positions, kept layers, and changes if there are any."""
        return (self.act_pos, *self.plan)

    @classmethod
    def read(cls, path: str | Path) -> Solution:
        """Read a solution: our JSON, or a published ``checkpoint.pth`` (a dict with ``act_pos`` and ``merge_pos``).

        Raises:
            SolutionError: no such file, not that format, or positions that break a rule.
        """
        path = Path(path)
        content = read_bytes(path, remedy="expected a solution file", error=SolutionError)
        if not _is_checkpoint(path, content):
            return cls._parsed(content, str(path))
        try:
            return _of_checkpoint(path)
        except SolutionError as error:
            raise SolutionError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, data: Mapping[str, JsonValue], *, source: str = "solution") -> Solution:
        """Return the solution that :meth:`to_json` wrote; only ``act_pos`` and ``merge_pos`` must be there.

        Args:
            data: as :meth:`to_json` gives it, or as its file was read.
            source: what the error line begins with.

        Raises:
            SolutionError: a missing field, or one that breaks a rule.
        """
        try:
            content = json.dumps(data, default=_plain)
        except (TypeError, ValueError) as error:
            raise SolutionError(f"{source}: holds what JSON has no form for ({error}); give plain values") from None
        return cls._parsed(content, source)

    @classmethod
    def _parsed(cls, content: bytes | str, source: str) -> Solution:
        schema = parse_json(content, _Versioned, source=source, remedy=_REMEDY, error=SolutionError).schema
        if schema != SCHEMA:
            raise SolutionError(f"{source}: schema {shown(schema)} is not known; this version reads schema {SCHEMA}")
        found = parse_json(content, _SolutionFile, source=source, remedy=_REMEDY, error=SolutionError)
        try:
            segments = tuple(each.segment(f"segments.{number}") for number, each in enumerate(found.segments))
            values = {name: value for name, value in vars(found).items() if name not in ("segments", "tables")}
            return cls(**values, segments=segments, table_hashes=found.tables)
        except SolutionError as error:
            raise SolutionError(f"{source}: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write as JSON, by an atomic replace."""
        write_json(path, self.to_json())

    def write_checkpoint(self, path: str | Path) -> None:
        """Write as a published ``checkpoint.pth``: a dict with ``act_pos`` and ``merge_pos``. Needs torch."""
        if self.changes:
            raise SolutionError(f"{path}: a .pth file has no place for {self.changes[0].word}; write it as JSON")
        torch = _torch(Path(path))
        found = {"act_pos": list(self.act_pos), "merge_pos": list(self.merge_pos)}
        if self.kept_layers is not None:
            found["kept_layers"] = list(self.kept_layers)
        with replacing(path) as partial:
            torch.save(found, partial)

    def to_json(self) -> JsonObject:
        """Return what the JSON file holds."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "network_hash": self.network_hash,
            "act_pos": list(self.act_pos),
            "merge_pos": list(self.merge_pos),
            "kept_layers": None if self.kept_layers is None else list(self.kept_layers),
            "budget_ms": self.budget_ms,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "importance": self.importance,
            "status": self.status,
            "gap": self.gap,
            "costs": dict(self.costs),
            "segments": [
                {
                    "start": each.start,
                    "end": each.end,
                    "plan": each.plan,
                    "latency_ms": each.latency_ms,
                    **({"kernel": each.kernel} if each.kernel else {}),
                    **({"layers": list(each.layers)} if each.layers else {}),
                }
                for each in self.segments
            ],
            "tables": dict(self.table_hashes),
            "version": self.version,
        }


@dataclass(frozen=True, kw_only=True)
class _Versioned:
    """What of a file says whether the rest can be read."""

    schema: int = SCHEMA


@dataclass(frozen=True, kw_only=True)
class _SegmentInFile:
    """One segment in a file; see :class:`SolutionSegment`."""

    start: _Position
    end: _Position
    plan: Annotated[str, MaxLen(100)] = "merge"
    latency_ms: Finite | None = None
    kernel: str | None = None
    layers: list[_Position] = field(default_factory=list)

    def segment(self, field_name: str) -> SolutionSegment:
        """Return it, checked.

        Raises:
            SolutionError: a rule is broken; names the field.
        """
        if self.start >= self.end:
            raise SolutionError(f"{field_name}: start={self.start}, end={self.end}, expected start < end")
        if self.kernel and not is_kernel_text(self.kernel):
            raise SolutionError(
                f"{field_name}.kernel={shown(self.kernel)}: expected a merged kernel such as '3x3' or 'identity'"
            )
        return SolutionSegment(**{**vars(self), "kernel": self.kernel or "", "layers": tuple(self.layers)})


@dataclass(frozen=True, kw_only=True)
class _SolutionFile:
    """What a file holds; see :class:`Solution`."""

    act_pos: list[_Position]
    merge_pos: list[_Position]
    kept_layers: list[_Position] | None = None
    model: str = ""
    network_hash: str = ""
    budget_ms: Finite | None = None
    predicted_ms: Finite | None = None
    measured_ms: Finite | None = None
    importance: Finite | None = None
    status: str = "given"
    gap: Finite | None = None
    costs: dict[str, Finite] = field(default_factory=dict)
    segments: list[_SegmentInFile] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    version: str = ""


def _positions(values: Iterable[object], name: str) -> tuple[int, ...]:
    given = None if isinstance(values, Mapping) else as_tuple(values)
    if given is None:
        raise SolutionError(f"{name}={shown(values)}: expected a list of positions")
    found = []
    for value in given:
        try:
            found.append(whole(name, value, least=0, most=LARGEST_POSITION))
        except UsageError:
            raise SolutionError(
                f"{name}: {shown(value)} is no position, expected whole numbers of at least 1"
            ) from None
        except RuntimeError:  # a tensor of several numbers
            raise SolutionError(f"{name}: {shown(value)} is no position, expected whole numbers") from None
    # Published programs list 0, the network's input, among the positions.
    return tuple(sorted(set(found) - {0}))


def _is_checkpoint(path: Path, content: bytes) -> bool:
    return path.suffix in (".pth", ".pt") or content[:2] == b"PK" or content[:1] == b"\x80"


def _torch(path: Path) -> Any:
    # By name: this package works without torch, and only the published format asks for it.
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise OptionalDependencyError(f"{path}: a .pth file needs torch; pip install torch") from None


def _of_checkpoint(path: Path) -> Solution:
    """Return the solution of a published checkpoint, whose positions are lists, tensors or arrays."""
    try:
        data = load_torch_file(path)
    except UsageError as error:
        raise SolutionError(
            f"no published checkpoint that is safe to load ({error}); expected a dict with the lists act_pos and "
            "merge_pos"
        ) from None
    if not isinstance(data, dict):
        raise SolutionError(f"holds a {stands_for(data)}, expected a dict with act_pos and merge_pos")
    for name in ("act_pos", "merge_pos"):
        if name not in data:
            raise SolutionError(f"no {name!r}, expected act_pos and merge_pos; is it a solution?")
    kept = data.get("kept_layers")
    return Solution(
        act_pos=_plain_list(data["act_pos"], "act_pos"),
        merge_pos=_plain_list(data["merge_pos"], "merge_pos"),
        kept_layers=None if kept is None else _plain_list(kept, "kept_layers"),
    )


def _plain_list(value: Any, name: str) -> Any:
    """Return a tensor or an array of NumPy as a list; others as they are."""
    value = plain_array(value)
    if not hasattr(value, "tolist"):
        return value
    shape = tuple(value.shape)
    # Shape first: a tensor of a few bytes may claim to be of any size.
    if len(shape) != 1 or shape[0] > LARGEST_POSITION:
        raise SolutionError(f"{name} is of shape {shape}, expected a list of at most {LARGEST_POSITION}")
    try:
        return value.tolist()
    except Exception as error:  # a tensor without values, or sparse
        reason = " ".join(str(error).split())[:100]
        raise SolutionError(f"{name} is no plain list of positions ({reason})") from None


def _plain(value: object) -> object:
    """Return an array of NumPy's, or a tensor, as the list that JSON has for it."""
    to_list = getattr(value, "tolist", None)
    if callable(to_list):
        return to_list()
    raise TypeError(f"a {type(value).__name__}")
