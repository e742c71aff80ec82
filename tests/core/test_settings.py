"""Options go to a function whole, and their fields by name too. No torch here."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from layerfold.arguments import checked
from layerfold.errors import UsageError
from layerfold.settings import check_settings, merged, setting, takes_settings


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Sample options."""

    steps: int = setting(3, least=1, most=9)
    pace: float = setting(1.0, above=0, below=2)
    mood: str = setting("calm", choices=("calm", "merry"))
    far_m: float | None = None
    long_s: float | None = None
    home: bool = False
    guide: tuple[str, ...] = field(default_factory=tuple)
    one_of: ClassVar[tuple[str, ...]] = ("far_m", "long_s", "home")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class Gear:
    """Sample options of another kind."""

    boots: str = "old"
    steps: int = 100


@takes_settings(options=Walk, gear=Gear)
@checked
def go(
    place: str,
    mood: str | None = None,
    options: Walk | None = None,
    *,
    gear: Gear | None = None,
    dog: bool = False,
    **settings: Any,
) -> tuple[Walk | None, Gear | None]:
    assert mood is None
    assert not settings
    return options, gear


@pytest.mark.parametrize(
    ("given", "walk", "gear"),
    [
        ({}, Walk(), Gear()),
        ({"steps": 5}, Walk(steps=5), Gear()),
        ({"options": Walk(steps=5, pace=0.5)}, Walk(steps=5, pace=0.5), Gear()),
        ({"options": Walk(steps=5, pace=0.5), "steps": 7}, Walk(steps=7, pace=0.5), Gear()),
        ({"options": Walk(mood="merry"), "mood": "calm"}, Walk(), Gear()),
        ({"boots": "new", "gear": Gear(steps=4)}, Walk(), Gear(boots="new", steps=4)),
        ({"options": Walk(far_m=3.0), "long_s": 2.0}, Walk(long_s=2.0), Gear()),
        ({"options": Walk(far_m=3.0), "long_s": None}, Walk(far_m=3.0), Gear()),
        ({"options": Walk(home=True), "far_m": 3.0}, Walk(far_m=3.0), Gear()),
        ({"options": Walk(home=True), "far_m": 0}, Walk(far_m=0.0), Gear()),
        ({"options": Walk(far_m=0.0), "long_s": 2.0}, Walk(long_s=2.0), Gear()),
        ({"options": Walk(far_m=3.0), "home": False}, Walk(far_m=3.0), Gear()),
        ({"guide": None}, Walk(), Gear()),
    ],
)
def test_setting_by_name_takes_the_place_of_that_of_the_options(given: dict[str, Any], walk: Walk, gear: Gear) -> None:
    assert go("home", **given) == (walk, gear)


def test_parameter_that_is_a_field_has_its_own_place() -> None:
    assert go("home", "merry") == (Walk(mood="merry"), Gear())
    assert go("home", "merry", Walk(steps=2)) == (Walk(mood="merry", steps=2), Gear())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stesp": 3}, "go: there is no setting 'stesp'; nearest: steps"),
        ({"dgo": True}, "go: there is no setting 'dgo'; nearest: dog"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"steps": 10}, "steps=10: must be at most 9"),
        ({"steps": True}, "steps=True: must be a whole number"),
        ({"pace": 2.0}, "pace=2.0: must be above 0 and below 2"),
        ({"pace": float("nan")}, "pace=nan: must be a number"),
        ({"mood": "mery"}, "mood='mery': must be one of calm, merry; nearest: merry"),
        ({"options": Gear()}, "options=Gear(boots='old', steps=100): expected Walk, got a Gear"),
    ],
)
def test_what_is_wrong_is_one_line(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        go("home", **given)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_missing_argument_stays_a_type_error() -> None:
    with pytest.raises(TypeError, match="place"):
        go()  # type: ignore[call-arg]


def test_signature_shows_the_settings_once() -> None:
    parameters = inspect.signature(go).parameters
    own = ["place", "mood", "options", "gear", "dog"]
    assert list(parameters) == [*own, "steps", "pace", "far_m", "long_s", "home", "guide", "boots"]
    assert (parameters["steps"].default, parameters["steps"].annotation) == (3, "int")
    assert (parameters["mood"].default, parameters["mood"].annotation) == ("calm", "str")


def test_merged_keeps_the_object_where_nothing_is_given() -> None:
    walk = Walk(steps=2)
    assert merged(walk, Walk, {}) is walk
