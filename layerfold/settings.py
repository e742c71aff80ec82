"""Settings of public functions: one frozen dataclass per job, whose fields may also be given by name. No torch here.

A field says its own limits (:func:`setting`). They are checked when the object is made (:func:`check_settings`), and a
flag of the command line is made from them (``layerfold.cli._flags``). A function marked with :func:`takes_settings`
takes such objects whole and their fields by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, ParamSpec, TypeVar, cast

from layerfold.arguments import MOST_COUNTED, check_bounds, check_fields, checked_value, shown, whole
from layerfold.errors import UsageError, nearest_names

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")
_RULE = "rule"
_PLAIN = frozenset({"int", "float", "bool", "str", "Path", "os.PathLike[str]", "None"})


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Limits of a field, and the help of its flag.

    Attributes:
        least, above, most, below: limits of a number; None for none.
        choices: texts to choose from; none for any.
        metavar: what stands for the value in the help.
        help: of the flag, without the default.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    choices: Sequence[str] = ()
    metavar: str | None = None
    help: str = ""

    def check(self, name: str, value: Any, annotation: str) -> None:
        """Refuse a value outside the limits.

        Raises:
            UsageError: names the field, its value and the rule.
        """
        if self.choices:
            if value not in self.choices:
                known = ", ".join(self.choices)
                raise UsageError(f"{name}={value!r}: must be one of {known}{nearest_names(value, self.choices)}")
        elif "int" in annotation.split(" | "):
            if self.least is not None:
                whole(name, value, least=int(self.least), most=int(self.most or MOST_COUNTED))
        elif (self.least, self.above, self.most, self.below) != (None, None, None, None):
            limits = {"least": self.least, "above": self.above, "most": self.most, "below": self.below}
            check_bounds(name, value, **{key: limit for key, limit in limits.items() if limit is not None})


def setting(
    default: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    metavar: str | None = None,
    help: str = "",
) -> Any:
    """Return a dataclass field with a default and a :class:`Rule`, which says what the arguments are."""
    rule = Rule(least=least, above=above, most=most, below=below, choices=choices, metavar=metavar, help=help)
    return field(default=default, metadata={_RULE: rule})


def rule_of(known: Field[Any]) -> Rule:
    """Return the rule of a field; one without limits where it has none."""
    found: Rule = known.metadata.get(_RULE, Rule())
    return found


def check_settings(options: Any) -> None:
    """Check the fields of an options object by their annotations and rules; call it first in ``__post_init__``.

    Raises:
        UsageError: a wrong type, or a value outside its limits.
    """
    check_fields(options)
    for each in fields(options):
        value = getattr(options, each.name)
        if value is not None:
            rule_of(each).check(each.name, value, str(each.type))


def merged(options: _T | None, cls: type[_T], settings: Mapping[str, Any], *, name: str = "options") -> _T:
    """Return an options object with the fields that were given by name put in.

    Where a class says with ``one_of`` that only one of some fields may be given, one given by name takes the place of
    all of them.

    Args:
        options: of that class; None for its defaults.
        cls: a frozen dataclass.
        settings: values by field.
        name: of the argument that ``options`` is, for the error.

    Raises:
        UsageError: another class, an unknown name (names the nearest), or a value outside its limits.
    """
    if options is not None and not isinstance(options, cls):
        raise UsageError(f"{name}={shown(options)}: expected {cls.__name__}, got a {type(options).__name__}")
    known = [each.name for each in fields(cast(Any, cls))]
    for each in settings:
        if each not in known:
            raise _unknown(each, known)
    if options is None:
        return cls(**settings)
    group = getattr(cls, "one_of", ())
    # None and False say that it is not wanted; 0 is a value.
    given = {key: value for key, value in settings.items() if key not in group or not (value is None or value is False)}
    if any(key in group for key in given):
        given = {**{each.name: each.default for each in fields(cast(Any, cls)) if each.name in group}, **given}
    return replace(cast(Any, options), **given) if given else options


def _unknown(name: str, known: list[str], of: str = "") -> UsageError:
    where = f"{of}: " if of else ""
    return UsageError(f"{where}there is no setting {name!r}{nearest_names(name, known)}")


def takes_settings(**classes: type[Any]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function take the fields of its options by name too; it is called with the objects whole.

    The function has a parameter for each object and ``**settings: Any``, which is empty when it runs. A parameter of
    its own that is also a field stands for that field, in a place of its own: it is None when the function runs.
    ``help`` shows the fields as parameters.

    Args:
        classes: by the name of the parameter; where two have a field of the same name it is the first one's.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        name = getattr(function, "__name__", "")
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        named = [each.name for each in own]
        home: dict[str, str] = {}
        known: dict[str, Field[Any]] = {}
        for parameter, cls in classes.items():
            for each in fields(cls):
                home.setdefault(each.name, parameter)
                known.setdefault(each.name, each)
        placed = [each for each in named if each in known]

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            bound = signature.bind_partial(*args, **kwargs)
            settings = bound.arguments.pop("settings", {})
            settings |= {key: bound.arguments.pop(key) for key in placed if key in bound.arguments}
            for key, value in list(settings.items()):
                if key not in home:
                    raise _unknown(key, [*named, *home], name)
                if value is None and known[key].default_factory is not MISSING:
                    del settings[key]  # an object of options that is left out
                    continue
                settings[key] = checked_value(key, value, known[key].type)
            for each in own:  # before the settings together: a wrong type is said of what has it
                if each.name in bound.arguments and set(str(each.annotation).split(" | ")) <= _PLAIN:
                    checked_value(each.name, bound.arguments[each.name], each.annotation)
            for parameter, cls in classes.items():
                of_this = {key: value for key, value in settings.items() if home[key] == parameter}
                bound.arguments[parameter] = merged(bound.arguments.get(parameter), cls, of_this, name=parameter)
            return function(*bound.args, **bound.kwargs)

        parameters = [
            each.replace(default=_default(known[each.name]), annotation=known[each.name].type)
            if each.name in known
            else each
            for each in own
        ] + [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=_default(each), annotation=each.type)
            for key, each in known.items()
            if key not in named
        ]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def _default(known: Field[Any]) -> Any:
    if known.default_factory is not MISSING:
        return known.default_factory()
    return inspect.Parameter.empty if known.default is MISSING else known.default
