"""Numbers as people read them."""

from __future__ import annotations

import pytest

from layerfold.report.words import large_text, positions_text, share_text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, "1"),
        (999_999, "999,999"),
        (1_000_000, "about 1.0 × 10^6"),
        (16_690_000_000_000_000, "about 1.7 × 10^16"),
        (9_960_000, "about 1.0 × 10^7"),
        (7**200, "about 1.0 × 10^169"),
    ],
)
def test_large_counts_are_short_and_right(number: int, text: str) -> None:
    assert large_text(number) == text


def test_three_positions_in_a_row_are_a_range() -> None:
    assert positions_text([2, 5, 6, 7, 9, 10]) == "2, 5..7, 9, 10"
    assert positions_text([]) == ""


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.0001, "< 0.1 %"), (0.6651, "66.5 %"), (1.0, "100 %"), (0.9999, "100.0 %")]
)
def test_share_never_hides_that_something_is_there(share: float, text: str) -> None:
    assert share_text(share) == text
