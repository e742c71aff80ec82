"""Which of the sets of weights in a file a module takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerfold.errors import UsageError, nearest_names
from layerfold.models._checkpoint import plain_key

_LEFT_BY_PROFILERS = ("total_ops", "total_params")
"""Last names of buffers that counters of operations (thop) leave in every module."""
_AVERAGED = re.compile(r"(?:^|[^a-z])(?:ema|swa)(?:[^a-z]|$)|modelema")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A set of weights as a module would take it.

    Attributes:
        name: by which ``--weights-key`` asks for it: the place in the file, then what stands before every key.
        state: by the module's own keys.
        missing, unexpected, wrong: keys that are not there, that the module does not have, and of another shape.
        beside: keys of the same place that belong to no module, for example a loss.
    """

    name: str
    state: Mapping[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether every key is there, and nothing else, all of the right shape."""
        return not (self.missing or self.unexpected or self.wrong)

    @property
    def is_averaged(self) -> bool:
        """Whether its name says that these are averages over training: EMA or SWA."""
        return bool(_AVERAGED.search(self.name.lower()))

    @property
    def called(self) -> str:
        """The name for people."""
        return repr(self.name) if self.name else "those at the top of the file"


def fits_of(sets: Mapping[str, Mapping[str, Tensor]], expected: Mapping[str, Tensor]) -> list[Fit]:
    """Return how each set of a file fits the state of a module: whole ones first, then by the keys that match.

    A prefix that all keys of the module have in a set (``module.``, ``model.``, ``ema.module.``) is taken off; a set
    may hold several.
    """
    wanted = {plain_key(key): key for key in expected}
    fits = [fit for name, state in sets.items() for fit in _fits_in(name, state, wanted, expected)]
    return sorted(fits, key=lambda fit: (not fit.is_whole, len(fit.missing) + len(fit.unexpected) + len(fit.wrong)))


def choose(fits: list[Fit], key: str | None) -> Fit:
    """Return the fit to take: the one asked for, else averaged weights, else the only one that is whole.

    Where none is whole the nearest is returned, for the caller to say what is wrong with it.

    Raises:
        UsageError: the bare reason: no set has the name, or several fit equally.
    """
    if key is not None:
        return _asked_for(fits, key)
    whole = _distinct([fit for fit in fits if fit.is_whole])
    averaged = [fit for fit in whole if fit.is_averaged]
    for some in (averaged, whole):
        if len(some) == 1:
            return some[0]
        if some:
            raise UsageError(
                f"holds {len(some)} sets of weights that fit equally, {_listed(some)}; choose one with "
                "--weights-key (weights_key)"
            )
    return fits[0]


def _asked_for(fits: list[Fit], key: str) -> Fit:
    named = [fit for fit in fits if fit.name == key] or [fit for fit in fits if fit.name.startswith(f"{key}.")]
    if not named:
        names = [fit.name for fit in fits if fit.name]
        raise UsageError(f"has no set of weights {key!r}, only {_listed(fits[:8])}{nearest_names(key, names)}")
    whole = [fit for fit in named if fit.is_whole]
    if len(_distinct(whole)) > 1:
        raise UsageError(f"holds several sets of weights below {key!r}: {_listed(whole)}; name one of them")
    return (whole or named)[0]


def _listed(fits: Iterable[Fit]) -> str:
    return ", ".join(fit.called for fit in fits)


def _distinct(fits: list[Fit]) -> list[Fit]:
    """Return the fits without those whose every tensor equals that of an earlier one."""
    kept: list[Fit] = []
    for fit in fits:
        if not any(_is_same(fit.state, other.state) for other in kept):
            kept.append(fit)
    return kept


def _is_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    try:
        return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    except RuntimeError:  # tensors that cannot be compared: quantised, sparse, without values
        return False


def _fits_in(
    name: str, state: Mapping[str, Tensor], wanted: Mapping[str, str], expected: Mapping[str, Tensor]
) -> list[Fit]:
    prefixes = _prefixes(state, wanted)
    needed = [key for key in wanted if not _may_be_missing(key)]
    whole = [prefix for prefix in prefixes if all(prefix + key in state for key in needed)]
    return [_fit(name, state, prefix, whole, wanted, expected) for prefix in whole or prefixes[:1] or [""]]


def _fit(
    name: str,
    state: Mapping[str, Tensor],
    prefix: str,
    whole: list[str],
    wanted: Mapping[str, str],
    expected: Mapping[str, Tensor],
) -> Fit:
    others = tuple(other for other in whole if other != prefix and not prefix.startswith(other))
    own = {key: value for key, value in state.items() if not key.startswith(others)}
    under = {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}
    beside = [key for key in own if not key.startswith(prefix)]
    if prefix and len(beside) > len(under):  # a fragment of a larger network, which happens to have these names
        prefix, under, beside = "", own, []
    return Fit(
        name=".".join(part for part in (name, _label(prefix)) if part),
        state={wanted[key]: value for key, value in under.items() if key in wanted},
        missing=tuple(real for key, real in wanted.items() if key not in under and not _may_be_missing(key)),
        unexpected=tuple(key for key in under if key not in wanted and not _is_left_over(key)),
        wrong=tuple(wanted[key] for key in under if key in wanted and under[key].shape != expected[wanted[key]].shape),
        beside=tuple(beside),
    )


def _prefixes(state: Mapping[str, Tensor], wanted: Mapping[str, str]) -> list[str]:
    """Return what stands before keys of the module in a set, the commonest first."""
    votes: dict[str, int] = {}
    for key in state:
        start = 0
        while True:
            if key[start:] in wanted:
                votes[key[:start]] = votes.get(key[:start], 0) + 1
            dot = key.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    return sorted(votes, key=lambda prefix: (-votes[prefix], len(prefix)))


def _label(prefix: str) -> str:
    """Return a prefix without the names of wrappers."""
    return ".".join(part for part in prefix.split(".") if part not in ("", "module"))


def _may_be_missing(key: str) -> bool:
    """Old checkpoints have no batch counters, and nothing in eval mode reads them."""
    return key.endswith("num_batches_tracked")


def _is_left_over(key: str) -> bool:
    return key.rpartition(".")[2] in _LEFT_BY_PROFILERS
