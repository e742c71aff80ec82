"""The frontier's plot holds what it was given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerfold.report import MeasuredPoint, frontier_png
from layerfold.report.frontier import _linear_range

POINTS = [(3.0, -5.0), (4.0, -2.0), (5.0, 0.0)]
_ORANGE = (230, 159, 0)
_RED = (213, 94, 0)


def _share(path: Path, colour: tuple[int, int, int]) -> float:
    """Return the share of pixels of about that colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return float(np.mean(np.all(np.abs(pixels - np.array(colour)) < 12, axis=-1)))


def test_plot_is_a_picture_of_a_readable_size(tmp_path: Path) -> None:
    path = frontier_png(POINTS, tmp_path / "frontier.png", title="Sample")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size >= (1200, 600)


def test_budget_is_drawn_only_where_there_is_one(tmp_path: Path) -> None:
    without = frontier_png(POINTS, tmp_path / "a.png")
    with_budget = frontier_png(POINTS, tmp_path / "b.png", budget_ms=4.2, original=(5.1, 0.0), chosen=POINTS[1])
    assert _share(without, _ORANGE) == 0
    assert _share(with_budget, _ORANGE) > 0


def test_measured_plan_over_the_budget_stands_out(tmp_path: Path) -> None:
    def plot(is_within: bool) -> Path:
        point = MeasuredPoint(
            predicted_ms=4.0, measured_ms=4.3, low_ms=4.2, high_ms=4.4, importance=-2.0, is_within=is_within
        )
        return frontier_png(POINTS, tmp_path / f"{is_within}.png", measured=[point])

    assert _share(plot(False), _RED) > 0
    assert _share(plot(True), _RED) == 0


def test_good_plans_stay_apart_beside_very_bad_ones() -> None:
    near_chosen = [(3.0, -400.0), (4.0, -3.0), (5.0, -1.0)]
    assert _linear_range([p[1] for p in near_chosen], near_chosen[1]) == 10.0
    assert _linear_range([p[1] for p in near_chosen], None) == 10.0
    assert _linear_range([p[1] for p in POINTS], POINTS[1]) is None
    assert _linear_range([0.0, 0.0], (3.0, 0.0)) is None


@pytest.mark.parametrize("points", [[], [(2.0, -1.0)]])
def test_plot_takes_a_frontier_of_any_length(tmp_path: Path, points: list[tuple[float, float]]) -> None:
    assert frontier_png(points, tmp_path / "few.png", least=points[0] if points else None).stat().st_size > 1000


def test_interval_that_leaves_out_its_median_is_still_drawn(tmp_path: Path) -> None:
    point = MeasuredPoint(predicted_ms=4.0, measured_ms=4.0, low_ms=4.1, high_ms=4.2, importance=-2.0)
    assert frontier_png(POINTS, tmp_path / "odd.png", measured=[point]).is_file()
