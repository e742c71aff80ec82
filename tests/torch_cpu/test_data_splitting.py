"""Splits are disjoint, whole, in proportion, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfold.data._splitting import holdout_size, stratified_parts
from layerfold.errors import UsageError


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 9))
def test_parts_hold_every_row_once_and_every_class_in_proportion(data: st.DataObject, seed: int) -> None:
    counts = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    size = data.draw(st.integers(0, len(labels)))
    part, rest = stratified_parts(labels, [size], seed)
    assert len(part) == size
    assert sorted([*part, *rest]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert abs(int((labels[part] == label).sum()) - count * size / len(labels)) < 1


def test_same_seed_same_split_other_seed_other_split() -> None:
    labels = np.arange(300) % 10
    first, again, other = (stratified_parts(labels, [50], seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_image_a_class_is_divided_in_halves() -> None:
    first, second = stratified_parts(np.arange(1000), [500], 0)
    assert (len(first), len(second)) == (500, 500)


@pytest.mark.parametrize(
    ("holdout", "available", "size"), [(None, 1000, 100), (None, 50_000, 2000), (0.2, 1000, 200), (300, 1000, 300)]
)
def test_holdout_is_a_share_or_a_count(holdout: float | None, available: int, size: int) -> None:
    assert holdout_size(holdout, available) == size


@pytest.mark.parametrize("holdout", [0, -0.1, 1.5, 1000, float("nan"), 0.0001])
def test_holdout_that_leaves_nothing_is_refused(holdout: float) -> None:
    with pytest.raises(UsageError, match=r"^holdout="):
        holdout_size(holdout, 1000)
