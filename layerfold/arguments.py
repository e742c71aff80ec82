"""Argument checks of public functions, read off their annotations: one place, so that all speak alike. No torch here.

A parameter annotated ``int``, ``float``, ``bool``, ``str`` or a path (or one of them or None) is checked by that, and
what is plainly meant is accepted: NumPy's numbers, ``Decimal``, a ``Path`` for a text. A name that has limits in
``LIMITS`` has them in every function. Classes of this package are known by name. What else a function asks of its
arguments is its own to check.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from layerfold.errors import UsageError
from layerfold.terminal import one_line


@runtime_checkable
class _HasItems(Protocol):
    def __getitem__(self, index: int, /) -> Any: ...


_P = ParamSpec("_P")
_R = TypeVar("_R")

LIMITS: Mapping[str, tuple[int, int]] = {
    "num_classes": (1, 100_000),
    "in_channels": (1, 65_536),
    "batch": (1, 65_536),
    "batch_size": (1, 65_536),
    "threads": (1, 1_024),
    "workers": (1, 1_024),
    "seed": (0, 2**63 - 1),
}
"""Least and most of whole numbers, by the parameter's name; what is beyond could only end in a failed allocation."""
MOST_NUMBERS = 2**28
"""Numbers that one batch of input may hold: 1 GiB as float32."""

MOST_COUNTED = 10**9
"""Of steps, epochs and the like, where nothing says less."""
_LARGEST = 1e300

_CLASSES = frozenset(
    {
        "Network",
        "Solution",
        "LatencyTable",
        "ImportanceTable",
        "ImageData",
        "Frontier",
        "CompressOptions",
        "FinetuneOptions",
        "ImportanceOptions",
        "RunOptions",
        "SearchOptions",
        "BenchmarkOptions",
        "CompareOptions",
        "DataOptions",
        "ExportOptions",
        "ProfileOptions",
        "SolveOptions",
        "VerifyOptions",
        "Limits",
        "Refinement",
    }
)
_LISTS = {
    "Sequence[str]": "str",
    "Iterable[str]": "str",
    "tuple[str, ...]": "str",
    "Sequence[float]": "float",
    "tuple[float, ...]": "float",
    "frozenset[int]": "int",
}
_MANY = {"str": "texts", "float": "numbers", "int": "whole numbers"}
_ELEMENTS = frozenset({"Segment", "LatencyTable"})
_CHOICES = frozenset({"ScheduleName", "Normalise", "Granularity", "Method", "BudgetOf"})
"""Names of texts out of a few, which the function checks."""
_PLAIN_MODULES = frozenset({"builtins", "numpy", "torch", "pathlib", "decimal", "fractions"})
_ITERABLE = (Iterable, _HasItems)
_PATHS = frozenset({"Path", "os.PathLike[str]"})


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a public function check its arguments by their annotations before it runs.

    Raises:
        UsageError: from the function: an argument of a wrong type or outside ``LIMITS``.
    """
    signature = inspect.signature(function)
    kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            bound.arguments[name] = checked_value(name, value, kinds[name])
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(options: Any) -> None:
    """Check the fields of a frozen dataclass by their annotations, in place; call it first in ``__post_init__``.

    Ranges, NaN among them, are for the options to check then.

    Raises:
        UsageError: a field of a wrong type or outside ``LIMITS``.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if type(value) is float and "float" in str(field.type):
            continue  # NaN included: each option's own rule says what its range is
        found = checked_value(field.name, value, field.type)
        if found is not value:
            object.__setattr__(options, field.name, found)


def checked_value(name: str, value: Any, annotation: object) -> Any:
    """Return an argument as the type that its annotation says; as it is where the annotation says another kind.

    Raises:
        UsageError: a wrong type, or outside ``LIMITS``.
    """
    kinds = set(annotation.split(" | ")) if isinstance(annotation, str) else set()
    if not kinds or (value is None and "None" in kinds):
        return value
    known = kinds - {"None"}
    if known <= {"int"}:
        return whole(name, value)
    if known <= {"float"}:
        return number(name, value)
    if known <= {"bool"}:
        return flag(name, value)
    if "str" in known and known <= {"str", *_PATHS}:
        return text_or_path(name, value, may_be_path=bool(known & _PATHS))
    lists = known & _LISTS.keys()
    if lists and known <= {*_LISTS, "float"}:
        return _list(name, value, _LISTS[lists.pop()], is_one_number_kept="float" in known)
    if all(kind in _CHOICES or kind.startswith("Literal['") for kind in known):
        return text_or_path(name, value, may_be_path=False)
    if not _may_be(value, known):
        raise UsageError(f"{name}={shown(value)}: expected {_words(known)}, got a {type(value).__name__}")
    return value


def _may_be(value: Any, kinds: set[str]) -> bool:
    """Say whether a value may be of kinds that are not plain: by its class's name, or for not being plain itself."""
    names = {each.__name__ for each in type(value).__mro__}
    if kinds <= _CLASSES or kinds & _CLASSES & names:
        return bool(kinds & names)
    if kinds == {"bool", "str"}:
        return isinstance(value, str) or "bool" in names or "bool_" in names
    if any(kind.startswith("Mapping[") for kind in kinds):
        return isinstance(value, Mapping)
    inner = {kind[len("Sequence[") : -1] for kind in kinds if kind.startswith("Sequence[")}
    if inner & _ELEMENTS:
        return isinstance(value, (list, tuple)) and all(inner & {type(each).__name__} for each in value)
    if any(kind.startswith(("Sequence[", "Iterable[", "Batches")) for kind in kinds):
        is_one = isinstance(value, (str, bytes, Mapping)) or names & {"ndarray", "Tensor"}
        return not is_one and isinstance(value, _ITERABLE)
    if "str" in kinds and not kinds & {"int", "float", "bool"}:
        # Beside a text stands an object with methods of its own, which only the function can tell.
        is_path = bool(kinds & _PATHS) and isinstance(value, os.PathLike)
        is_false = value is False and "Literal[False]" in kinds
        is_object = type(value).__module__.partition(".")[0] not in _PLAIN_MODULES
        return isinstance(value, str) or is_path or is_false or is_object
    return True


def _list(name: str, value: Any, kind: str, *, is_one_number_kept: bool) -> Any:
    """Return a list or tuple whose elements are of one kind; one alone stands for a list of it."""
    checks: dict[str, Callable[[str, Any], Any]] = {
        "str": functools.partial(text_or_path, may_be_path=False),
        "float": number,
        "int": whole,
    }
    check = checks[kind]
    is_text = isinstance(value, (str, os.PathLike))
    if isinstance(value, (numbers.Real, Decimal)) or (is_text and kind == "str"):
        one = check(name, value)
        return one if is_one_number_kept else (one,)
    is_one = not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0  # an array without axes
    if is_text or isinstance(value, (bytes, Mapping)) or is_one:
        raise UsageError(f"{name}={shown(value)}: expected several {_MANY[kind]}, got a {type(value).__name__}")
    found = tuple(check(name, each) for each in value)
    return list(found) if isinstance(value, list) else found


def whole(name: str, value: object, *, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number, also one of NumPy.

    Args:
        name: of the argument, for the error.
        value: what was given.
        least, most: limits; by default those of the name in ``LIMITS``, else of 64 bits.

    Raises:
        UsageError: another type, a truth value included; or outside the limits.
    """
    limits = LIMITS.get(name)
    least = (limits[0] if limits else -(2**63)) if least is None else least
    most = (limits[1] if limits else 2**63 - 1) if most is None else most
    try:
        if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
            raise TypeError
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UsageError(f"{name}={shown(value)}: must be a whole number, got a {type(value).__name__}") from None
    if found < least:
        raise UsageError(f"{name}={shown(found)}: must be at least {least}")
    if found > most:
        raise UsageError(f"{name}={shown(found)}: must be at most {most}")
    return found


def number(name: str, value: object) -> float:
    """Return a number as a float: also a ``Decimal``, a fraction, or one of NumPy.

    Raises:
        UsageError: another type, truth values and texts included; or not a number (NaN).
    """
    is_number = isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool)
    if not is_number:
        raise UsageError(f"{name}={shown(value)}: must be a number, got a {type(value).__name__}")
    try:
        found = float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        found = math.nan
    if math.isnan(found):
        raise UsageError(f"{name}={shown(value)}: must be a number that a float can hold")
    is_small = type(value) is int and abs(value) < 2**53
    return value if type(value) is float or is_small else found  # type: ignore[return-value]


def check_bounds(
    name: str,
    value: float | None,
    *,
    least: float = -math.inf,
    above: float | None = None,
    most: float = math.inf,
    below: float | None = None,
) -> None:
    """Refuse a number that is infinite, or not within its bounds, of which ``above`` and ``below`` are left out.

    None passes.

    Raises:
        UsageError: names the argument, its value and the bounds.
    """
    if value is None:
        return
    lower = f"above {above:g}" if above is not None else f"at least {least:g}" if math.isfinite(least) else ""
    upper = f"below {below:g}" if below is not None else f"at most {most:g}" if math.isfinite(most) else ""
    is_inside = (above is None or value > above) and (below is None or value < below)
    if not (abs(value) <= _LARGEST and is_inside and least <= value <= most):
        raise UsageError(f"{name}={shown(value)}: must be {' and '.join(filter(None, (lower, upper))) or 'a number'}")


def flag(name: str, value: object) -> bool:
    """Return a truth value, also one of NumPy or 0 and 1.

    Raises:
        UsageError: anything else.
    """
    if type(value).__name__ in ("bool", "bool_") or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise UsageError(f"{name}={shown(value)}: must be True or False, got a {type(value).__name__}")


def text_or_path(name: str, value: object, *, may_be_path: bool) -> Any:
    """Return a text, or a path where that is taken; a path for a text becomes one.

    Raises:
        UsageError: another type, or a path with a NUL in it.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(
            f"{name}={shown(value)}: must be {'a path' if may_be_path else 'text'}, got a {type(value).__name__}"
        )
    found = os.fspath(value)
    if not isinstance(found, str):
        raise UsageError(f"{name}={shown(value)}: must be text, got bytes")
    if may_be_path and "\0" in found:
        raise UsageError(f"{name}={shown(value)}: a path holds no NUL character")
    return value if may_be_path or isinstance(value, str) else str(Path(found))


def image_shape(name: str, value: object) -> tuple[int, int, int]:
    """Return (channels, height, width) of plain whole numbers.

    Raises:
        UsageError: not three, one below 1, or more than ``MOST_NUMBERS`` numbers together.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else ()
    if len(sizes) != 3:
        raise UsageError(f"{name}={shown(value)}: must be (channels, height, width), for example (3, 224, 224)")
    channels, height, width = (whole(name, size, least=1) for size in sizes)
    check_size(f"{name}:", (channels, height, width))
    return channels, height, width


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Raise UsageError for a shape of more than ``MOST_NUMBERS`` numbers, before anything of it is allocated."""
    if math.prod(shape) > MOST_NUMBERS:
        raise UsageError(
            f"{name} {'x'.join(str(size) for size in shape)[:100]} holds more than {MOST_NUMBERS} "
            "numbers, which is the most that one input may; give a smaller one"
        )


def shown(value: object) -> str:
    """Return a value for an error line: short, and without line breaks."""
    try:
        return one_line(reprlib.repr(value), most=80)
    except Exception:  # a repr of the caller's own
        return f"a {type(value).__name__}"


def _words(kinds: set[str]) -> str:
    names = {
        "int": "a whole number",
        "float": "a number",
        "bool": "True or False",
        "str": "text",
        "Path": "a path",
        "os.PathLike[str]": "a path",
    }
    return " or ".join(sorted({names.get(kind, f"a {kind}") for kind in kinds}))
