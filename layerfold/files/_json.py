"""JSON of a known shape: every field has a type and a bound, and an error names file and field."""

from __future__ import annotations

import contextlib
import json
import reprlib
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, cast

from annotated_types import Ge, Le

from layerfold.errors import LayerfoldError, UsageError
from layerfold.files._reading import read_bytes
from layerfold.terminal import one_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

    JsonValue: TypeAlias = bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
    """A value that JSON has a form for: what is written or printed as JSON, or read without a known shape."""
else:
    # What reads a file is JSON's own parser, which gives nothing else: no need to look at each value again.
    JsonValue = Any
JsonObject: TypeAlias = dict[str, JsonValue]
"""A JSON object whose names differ from case to case, or are another program's."""
T = TypeVar("T")
Finite = Annotated[float, Ge(-1e300), Le(1e300)]
"""A number that is neither NaN nor infinite."""
Count = Annotated[int, Ge(0), Le(2**53)]
"""A whole number of at least 0 that a float holds exactly."""
_MOST_BYTES = 256 << 20
_SHOWN = 100


def read_json(
    path: str | Path,
    shape: type[T],
    *,
    remedy: str = "write it again",
) -> T:
    """Return the value that a JSON file holds, checked field by field against a type.

    Args:
        path: a regular file.
        shape: what is expected: a dataclass, a ``TypedDict``, ``list[int]``, ... Bounds are those of
            ``annotated_types``, such as ``Annotated[float, Ge(0), Le(1e9)]``, which refuses NaN as well. Fields that
            ``shape`` does not have are passed over. Nothing is converted: a text is no number.
        remedy: what to do about a bad file, the end of the error line.

    Raises:
        UsageError: unreadable, above 256 MiB, no JSON, nested too deeply, or a field that is missing, of another type
            or out of bounds.
            One line: file, field, value, what was expected.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "limits.json"
        >>> _ = place.write_text('{"threads": [1, 2]}')
        >>> read_json(place, dict[str, list[int]])
        {'threads': [1, 2]}
    """
    content = read_bytes(path, most_bytes=_MOST_BYTES, remedy=remedy)
    return parse_json(content, shape, source=str(path), remedy=remedy)


def parse_json(
    content: bytes | str,
    shape: type[T],
    *,
    source: str,
    remedy: str = "write it again",
    error: type[LayerfoldError] = UsageError,
) -> T:
    """Return the value of JSON text; as :func:`read_json`, with ``source`` in place of the file's name."""
    from pydantic import ValidationError

    # A byte-order mark is what some editors put before the text of a file.
    plain = content.removeprefix("\ufeff") if isinstance(content, str) else content.removeprefix(b"\xef\xbb\xbf")
    try:
        found: T = _adapter(cast(Hashable, shape)).validate_json(plain, strict=True)
    except ValidationError as cause:
        raise error(f"{source}: {_first(cause)}; {remedy}") from None
    twice = _named_twice(plain)
    if twice is not None:
        raise error(f"{source}: {reprlib.repr(twice)} stands twice in one object, expected once; {remedy}")
    return found


def as_json(values: Mapping[str, object]) -> JsonObject:
    """Return plain values as a JSON file would give them back: tuples as lists, names as texts.

    Raises:
        TypeError: a value that JSON has no form for.

    Example:
        >>> as_json({"shape": (1, 3)})
        {'shape': [1, 3]}
    """
    found: JsonObject = json.loads(json.dumps(dict(values)))
    return found


def _named_twice(content: bytes | str) -> str | None:
    """Return a name that one object of valid JSON holds twice: which of the two is meant, nobody knows."""
    twice: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice.extend(name for name in names if names.count(name) > 1)

    with contextlib.suppress(ValueError, RecursionError):  # such as a number of more digits than Python reads
        json.loads(content, object_pairs_hook=check)
    return twice[0] if twice else None


@cache
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cast(Any, shape))


def _first(cause: ValidationError) -> str:
    """Return the first of all faults: field, rule, value."""
    found = cause.errors(include_url=False, include_context=False)[0]
    text = found["msg"].replace("Input should be", "expected")
    for words in ("a valid dictionary", "an object", "a dictionary or an instance of"):
        text = text.replace(f"expected {words}", "expected a JSON object")
    if found["type"] == "json_invalid":
        return f"is no JSON ({text.removeprefix('Invalid JSON: ')})"
    field = one_line(".".join(str(part) for part in found["loc"]), most=_SHOWN)
    if found["type"] == "missing":
        return f"{field} is missing"
    try:
        value = one_line(reprlib.repr(found["input"]), most=_SHOWN)
    except ValueError:  # a whole number of thousands of digits
        value = f"a {type(found['input']).__name__}"
    return f"{field}={value}: {text}" if field else f"{value}: {text}"
