"""Wrong types are one line with the argument; what is plainly meant is accepted. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from layerfold.arguments import LIMITS, check_fields, check_size, checked, image_shape
from layerfold.errors import LayerfoldError, UsageError

BIG = 10**30


@checked
def sample(
    source: str = "",
    *,
    count: int = 1,
    batch: int = 1,
    ratio: float = 1.0,
    budget_ms: float | None = None,
    is_quiet: bool = False,
    path: str | Path | None = None,
    names: Sequence[str] = (),
    shares: tuple[float, ...] = (),
    budgets: float | Sequence[float] | None = None,
    choice: Literal["a", "b"] = "a",
    table: LatencyTable = None,
    settings: Mapping[str, float] | None = None,
    augment: bool | str = True,
    segments: Sequence[Segment] | None = None,  # noqa: F821
    images: Batches | Dataset[Any] = (),  # noqa: F821
    cache: Cache | str | Literal[False] | None = None,  # noqa: F821
    backend: str | Backend = "",  # noqa: F821
    exclude: Iterable[str] = (),
) -> dict[str, Any]:
    """Return what reached the function."""
    return {name: value for name, value in locals().items() if value not in (None, "", ())}


REFUSED: list[tuple[str, Any, str]] = [
    *[("count", value, "must be a whole number") for value in (True, "3", 1.5, None, [1], Decimal(1), 1j)],
    *[("count", value, "must be at") for value in (BIG, -BIG)],
    *[("batch", value, "must be at") for value in (0, -1, 65_537, BIG)],
    *[
        ("ratio", value, "must be a number")
        for value in (
            True,
            "1.5",
            None,
            [1.0],
            1j,
            b"1",
            np.bool_(True),
            float("nan"),
            np.float32("nan"),
            10**400,
            np.zeros(2),
        )
    ],
    *[("budget_ms", value, "must be a number") for value in (False, "25ms", (1, 2), {}, Path("x"))],
    *[("is_quiet", value, "must be True or False") for value in (2, "yes", None, 1.0, [], np.zeros(2))],
    *[("source", value, "must be text") for value in (3, None, b"x", ["a"], True, np.zeros(1))],
    *[("path", value, "must be a path") for value in (3, True, ["a"], b"x", {})],
    ("path", "a\0b", "NUL"),
    *[("names", value, "expected several texts") for value in (3j, {"a": 1}, b"ab", object())],
    *[("names", value, "must be text") for value in ([1], [None], ("a", b"b"), 3)],
    *[("shares", value, "") for value in ("0.5", [True], [None], ["1"], {}, None)],
    *[("budgets", value, "") for value in ("1", [True], ["1"], {"a": 1}, True)],
    *[("choice", value, "must be text") for value in (1, None, ["a"], True, b"a")],
    *[("table", value, "expected a LatencyTable") for value in (1, None, "latency.csv", {}, [])],
    *[("settings", value, "expected a Mapping") for value in (1, [("a", 1)], "a", True)],
    *[("augment", value, "expected True or False or text") for value in (1, None, [], np.zeros(3), 1.5)],
    *[("segments", value, "expected") for value in (1, "ab", [1], np.zeros(3), ({},), True)],
    *[("images", value, "expected") for value in (1, None, "abc", b"x", np.zeros(3), {}, True, object())],
    *[("cache", value, "expected") for value in (True, 1, [], np.zeros(3), b"x")],
    *[("backend", value, "expected a Backend or text") for value in (1, None, True, b"x", Path("x"), np.zeros(1), [])],
]


@pytest.mark.parametrize(("name", "value", "says"), REFUSED)
def test_wrong_type_is_one_short_line_with_the_argument(name: str, value: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample(**{name: value})
    said = str(caught.value)
    assert said.startswith(f"{name}=")
    assert says in said
    assert "\n" not in said
    assert len(said) < 250


class LatencyTable:
    """Stands for the class of that name."""


@pytest.mark.parametrize(
    ("name", "given", "reaches"),
    [
        ("count", np.int64(3), 3),
        ("count", np.uint8(3), 3),
        ("batch", 65_536, 65_536),
        ("ratio", 2, 2),
        ("ratio", np.float32(0.5), 0.5),
        ("ratio", np.int16(2), 2.0),
        ("ratio", Decimal("0.5"), 0.5),
        ("ratio", Fraction(1, 2), 0.5),
        ("budget_ms", float("inf"), float("inf")),
        ("is_quiet", np.bool_(True), True),
        ("is_quiet", 1, True),
        ("source", Path("a/b"), "a/b"),
        ("path", Path("a"), Path("a")),
        ("path", "a", "a"),
        ("names", "abc", ("abc",)),
        ("names", ["a", "b"], ["a", "b"]),
        ("names", (each for each in "ab"), ("a", "b")),
        ("exclude", {"a"}, ("a",)),
        ("names", Path("a"), ("a",)),
        ("shares", [1, np.float64(2)], [1, 2.0]),
        ("shares", 0.5, (0.5,)),
        ("shares", np.ones(2), (1.0, 1.0)),
        ("budgets", 2, 2),
        ("budgets", [1.5, Decimal(2)], [1.5, 2.0]),
        ("budgets", Decimal(2), 2.0),
    ],
)
def test_what_is_plainly_meant_is_accepted(name: str, given: Any, reaches: Any) -> None:
    found = sample(**{name: given})[name]
    assert found == reaches
    assert type(found) is type(reaches)


def test_objects_of_known_classes_and_with_methods_of_their_own_pass() -> None:
    table, backend = LatencyTable(), object.__new__(type("Backend", (), {"__module__": "elsewhere"}))
    found = sample(table=table, backend=backend)
    assert (found["table"], found["backend"]) == (table, backend)


def test_unknown_and_missing_arguments_stay_type_errors() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'cuont'"):
        sample(cuont=3)  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checked when made."""

    seed: int = 0
    rate: float | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_of_options_are_checked_and_made_plain() -> None:
    made = Options(seed=np.int64(3), rate=Decimal("0.5"), names="abc")  # type: ignore[arg-type]
    assert made == Options(seed=3, rate=0.5, names=("abc",))
    assert type(made.seed) is int
    for wrong in ({"seed": -1}, {"seed": True}, {"seed": 2**63}, {"rate": "1"}, {"names": [3]}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shape",
    [
        (3, 224),
        (3, 0, 5),
        (3, -1, 5),
        "3x8x8",
        None,
        3,
        (3, 8.0, 8),
        (True, 8, 8),
        (10**6, 10**6, 3),
        (3, 10**6, 10**6),
        (10**9, 1, 1),
        (3, BIG, 1),
        ("3", 8, 8),
        {3: 1},
    ],
)
def test_shapes_that_are_none_or_too_large_are_refused_before_anything_is_allocated(shape: Any) -> None:
    with pytest.raises(UsageError, match=r"^input_shape[^\n]{1,200}$"):
        image_shape("input_shape", shape)


def test_shape_of_numpy_or_of_a_list_is_made_plain() -> None:
    assert image_shape("input_shape", [np.int64(3), 8, np.int32(9)]) == (3, 8, 9)
    check_size("x", (2**14, 2**14))
    with pytest.raises(UsageError, match="more than 268435456 numbers"):
        check_size("x", (2**14, 2**14 + 1))


def test_limits_are_stated_for_what_would_be_allocated() -> None:
    assert {"num_classes", "in_channels", "batch", "batch_size", "threads", "seed"} <= LIMITS.keys()
    assert all(least <= most for least, most in LIMITS.values())


def test_public_functions_of_the_solver_speak_alike() -> None:
    import layerfold as lf

    for call in (
        lambda: lf.solve_frontier(None, None),  # type: ignore[arg-type]
        lambda: lf.compute_optimal_latency("latency.csv"),  # type: ignore[arg-type]
        lambda: lf.extend_importance(3),  # type: ignore[arg-type]
        lambda: lf.solve_alternatives([], 3, count=1, budgets_ms=[1.0]),  # type: ignore[arg-type]
        lambda: lf.explain_point({}, 0),  # type: ignore[arg-type]
        lambda: lf.Limits(max_params="3"),  # type: ignore[arg-type]
        lambda: lf.Executor(workers=True),
        lambda: lf.Executor(threads=0),
    ):
        with pytest.raises(LayerfoldError) as caught:
            call()
        assert re.match(r"^\w+=[^\n]{1,200}$", str(caught.value)), caught.value
