"""The names that the command line knows without torch are those of the libraries."""

from __future__ import annotations

from layerfold.cli import _choices
from layerfold.data.preprocessing import INTERPOLATIONS
from layerfold.export.network import FORMATS
from layerfold.export.precision import _SHORT, PRECISIONS, canonical_precision
from layerfold.importance import estimators, scores
from layerfold.options.importance import ESTIMATORS, SCORES
from layerfold.options.optimizers import LEARNING_RATES


def test_names_known_to_the_command_line_are_those_of_the_libraries() -> None:
    assert tuple(estimators.ESTIMATORS) == tuple(ESTIMATORS)
    assert tuple(scores._COLUMNS) == SCORES
    assert _choices.INTERPOLATIONS == INTERPOLATIONS
    assert _choices.FORMATS == FORMATS
    names = {*PRECISIONS, *_SHORT}
    assert set(_choices.ENGINE_PRECISIONS) == {each for each in names if canonical_precision(each) != "bfloat16"}
    assert tuple(LEARNING_RATES) == _choices.OPTIMIZERS
