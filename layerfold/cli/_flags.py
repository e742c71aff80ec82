"""Flags made from the fields of options classes: type, limits, choices, default and help are what the field says."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar, cast

from layerfold.arguments import LIMITS
from layerfold.cli._options import MOST, SEED, above, at_least, whole
from layerfold.settings import Rule, rule_of

_T = TypeVar("_T")


def add_flags(group: argparse._ActionsContainer, cls: type[Any], *names: str, is_left_open: bool = False) -> None:
    """Add a flag for each of several fields of an options class; see :func:`add_flag`."""
    for name in names:
        add_flag(group, cls, name, is_left_open=is_left_open)


def add_flag(
    group: argparse._ActionsContainer,
    cls: type[Any],
    name: str,
    flag: str | None = None,
    *,
    is_left_open: bool = False,
    default: str | None = None,
    **changes: Any,
) -> argparse.Action:
    """Add the flag of a field, and return it.

    Args:
        group: of the parser.
        cls: an options class.
        name: of its field.
        flag: None for the field's name with dashes.
        is_left_open: whether a flag that is not given is None, to be filled in later; the help names the field's
            default all the same.
        default: what the help says of it; None for the value itself, "" for nothing.
        changes: arguments of argparse that differ from what the field says.
    """
    field = next(each for each in fields(cls) if each.name == name)
    rule, value = rule_of(field), None if field.default is MISSING else field.default
    how: dict[str, Any] = {"default": None if is_left_open else value}
    how |= {"choices": rule.choices} if rule.choices else {"type": _type_of(field, rule)}
    how["metavar"] = rule.metavar or (None if rule.choices else "X")
    said = _shown(value) if default is None else default
    how["help"] = " ".join(filter(None, (changes.pop("help", rule.help), f"(default: {said})" if said else "")))
    return group.add_argument(flag or "--" + name.replace("_", "-"), **{**how, **changes})


def options_from_flags(arguments: argparse.Namespace, cls: type[_T], **others: Any) -> _T:
    """Return an options object made of the flags that are named as its fields are, and of ``others``."""
    flags = vars(arguments)
    names = (each.name for each in fields(cast(Any, cls)))
    return cls(**{name: flags[name] for name in names if name in flags and name not in others}, **others)


def _type_of(field: Field[Any], rule: Rule) -> Callable[[str], Any] | None:
    kinds = str(field.type).split(" | ")
    if "int" in kinds:
        least, most = LIMITS.get(field.name, (0, MOST))
        most = min(most, SEED) if field.name == "seed" else most
        return whole(int(least if rule.least is None else rule.least), int(most if rule.most is None else rule.most))
    if "float" in kinds:
        limit = next((each for each in (rule.most, rule.below) if each is not None), math.inf)
        return above(rule.above, limit) if rule.above is not None else at_least(rule.least or 0.0, limit)
    return None


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, tuple):
        return ",".join(_shown(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
