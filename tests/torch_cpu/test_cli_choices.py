"""The names that the command line knows without torch are those of the libraries."""

from __future__ import annotations

from layerfold.cli import _choices
from layerfold.data.preprocessing import INTERPOLATIONS
from layerfold.export.network import FORMATS
from layerfold.export.precision import _SHORT, PRECISIONS
from layerfold.finetune._optimizers import LEARNING_RATES
from layerfold.importance import METHODS, SCORES
from layerfold.importance.estimate import ESTIMATORS


def test_names_known_to_the_command_line_are_those_of_the_libraries() -> None:
    assert tuple(_choices.METHODS) == METHODS
    assert tuple(ESTIMATORS) == tuple(_choices.ESTIMATORS)
    assert _choices.SCORES == SCORES
    assert _choices.INTERPOLATIONS == INTERPOLATIONS
    assert _choices.FORMATS == FORMATS
    assert set(_choices.ENGINE_PRECISIONS) == {*PRECISIONS, *_SHORT}
    assert tuple(LEARNING_RATES) == _choices.OPTIMIZERS
