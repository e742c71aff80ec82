"""Every error a user can cause, as one tree.

::

    LayerfoldError                    exit code 1
    +-- UsageError                    2   an argument or an input file is wrong
    |   +-- UnsupportedGraphError     2   the model cannot be traced or has nothing to merge
    |   +-- TableError                2   a latency or importance table is wrong
    |   |   +-- MissingEntryError         an entry that the solver needs is not there
    |   |   +-- ProvenanceMismatchError   tables of different devices, dtypes or input shapes
    |   +-- SolutionError             2   a solution that does not fit the network
    |   +-- DataError                 2   a broken image, a label outside the range
    +-- WriteError                    1   a file could not be written; what was there before is untouched
    +-- InfeasibleBudgetError         3   no plan meets the budget; carries the least reachable one
    +-- ProfilerError                 1
    |   +-- DeviceUnavailableError    4   the device or its driver is not there
    +-- MergeError                    1
    |   +-- EquivalenceError          1   train form and deploy form differ
    +-- FinetuneError                 1   training could not go on
    |   +-- DivergenceError           1   a loss or answers that are not finite
    +-- ExportError                   1
    +-- ExecutorError                 1   a task failed on every try
    |   +-- ClusterUnavailableError   4   no Ray cluster answers, or it lacks what was asked for
    +-- OptionalDependencyError       4   a package is missing (also an ImportError)

A message is one line: the argument, its value, the rule it broke, the remedy. The command line prints
that line and exits with the class's ``exit_code`` (docs/design.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LayerfoldError(Exception):
    """Root of the tree; ``exit_code`` is what the command line exits with.

    Attributes:
        is_said: another of several processes has said what there is to say.

    Example:
        >>> try:
        ...     lf.load_model("timm:mobilnetv2_100")
        ... except lf.LayerfoldError as error:
        ...     error.exit_code
        2
    """

    exit_code = 1
    is_said = False


class UsageError(LayerfoldError):
    """An argument or an input file that breaks a stated rule."""

    exit_code = 2


class UnsupportedGraphError(UsageError):
    """The model cannot be traced, or has nothing that could be merged."""


class TableError(UsageError):
    """A table file or table object that breaks its format."""


class MissingEntryError(TableError):
    """A segment or activation pair that the solver needs is not in the table."""


class ProvenanceMismatchError(TableError):
    """Tables measured on different devices, dtypes or input shapes were to be used together."""


class SolutionError(UsageError):
    """A solution that does not fit the network or its own rules."""


class DataError(UsageError):
    """Images or labels that cannot be used."""


class WriteError(LayerfoldError):
    """A file could not be written: a full disk, a missing right. What was there before is untouched."""


class InfeasibleBudgetError(LayerfoldError):
    """No plan meets the budget.

    Attributes:
        budget_ms: the budget asked for, in milliseconds.
        least_ms: the least latency that can be reached, in milliseconds.

    Example:
        >>> try:
        ...     lf.solve_frontier(latency, importance).at(budget_ms=1.5)
        ... except lf.InfeasibleBudgetError as error:
        ...     error.least_ms, error.exit_code
        (2.6, 3)
    """

    exit_code = 3

    def __init__(self, message: str, *, budget_ms: float, least_ms: float) -> None:
        super().__init__(message)
        self.budget_ms = budget_ms
        self.least_ms = least_ms


class ProfilerError(LayerfoldError):
    """Measuring failed."""


class DeviceUnavailableError(ProfilerError):
    """The device asked for, or its driver, is not there."""

    exit_code = 4


class MergeError(LayerfoldError):
    """A segment could not be merged."""


class EquivalenceError(MergeError):
    """Train form and deploy form give different outputs."""


class FinetuneError(LayerfoldError):
    """Training could not go on, for example because the loss is NaN."""


class DivergenceError(FinetuneError):
    """A loss or answers that are not finite."""


class ExportError(LayerfoldError):
    """A network could not be exported, or the exported file disagrees with it."""


class ExecutorError(LayerfoldError):
    """Work that was given to other processes could not be done there."""


class ClusterUnavailableError(ExecutorError):
    """No cluster answers at the address, or none of its nodes has the resources asked for."""

    exit_code = 4


class OptionalDependencyError(LayerfoldError, ImportError):
    """A package that this feature needs is not installed."""

    exit_code = 4


def nearest_names(name: object, known: Iterable[str]) -> str:
    """Return ``"; nearest: a, b"`` for the known names like ``name``, or ``""``: the tail of an error line."""
    if not isinstance(name, str):
        return ""  # what is no text is near to no name
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; nearest: {', '.join(found)}" if found else ""
