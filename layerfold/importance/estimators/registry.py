"""Find an estimator by name: layerfold's own, and those of other packages, which are imported when looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from typing import cast

from layerfold.errors import LayerfoldError
from layerfold.importance.estimators.distill import Distill
from layerfold.importance.estimators.finetune import Finetune
from layerfold.importance.estimators.protocol import Estimator
from layerfold.importance.estimators.recalibrate import Recalibrate
from layerfold.importance.estimators.shared import Shared
from layerfold.importance.estimators.taylor import Taylor
from layerfold.plugins import entry_points_of, load_part

GROUP = "layerfold.estimators"
"""The entry-point group: ``name = "package.module:Class"``, in any installed package."""

RESERVED = ("auto", "adaptive")
"""Methods that are no estimators, so none is called so."""

_OWN: dict[str, type[Estimator]] = {
    "shared": Shared,
    "recalibrate": Recalibrate,
    "distill": Distill,
    "finetune": Finetune,
    "taylor": Taylor,
}
_MEMBERS = (
    "fills_slots",
    "is_recalibrated",
    "trains",
    "trains_original",
    "shares_training",
    "looks_ahead",
    "known_scores",
    "options",
    "scores_of",
)


class Registry(Mapping[str, type[Estimator]]):
    """Estimators by the name that ``method`` and ``--method`` know them by: ours first, then others' by the alphabet.

    Looking one up imports it.

    Raises:
        KeyError: no such estimator.
        OptionalDependencyError: the module that defines it imports a package that is missing.
        LayerfoldError: it cannot be loaded, or is no estimator.
    """

    def __getitem__(self, name: str) -> type[Estimator]:
        if name in _OWN:
            return _OWN[name]
        found = load_part(
            _others()[name],
            f"method={name!r}",
            kind="estimator",
            members=_MEMBERS,
            guide="docs/importance.md",
            error=LayerfoldError,
        )
        return cast(type[Estimator], found)

    def __contains__(self, name: object) -> bool:
        return name in _OWN or name in _others()

    def __iter__(self) -> Iterator[str]:
        yield from _OWN
        yield from sorted(_others())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def estimator_names() -> tuple[str, ...]:
    """Return the names of all estimators: layerfold's own, then those that other packages register."""
    return tuple(ESTIMATORS)


def _others() -> dict[str, EntryPoint]:
    return {name: entry for name, entry in entry_points_of(GROUP).items() if name not in (*_OWN, *RESERVED)}


ESTIMATORS = Registry()
