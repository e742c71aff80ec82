"""Labels of one cost, packed into complex numbers, give what the search over several costs gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from layerfold.solver.labels import least_to_go, solve_chain
from layerfold.solver.options import ChainOptions, StretchPlan, chain_options


def _options(seed: int, columns: int, *, whole: bool) -> ChainOptions:
    """Return random options between states of a chain of 9 layers, several between the same two.

    The further columns repeat the first; with ``whole``, costs and importances are small whole numbers, so many tie.
    """
    rng = np.random.default_rng(seed)
    start, end = rng.integers(0, 9, 120), rng.integers(1, 10, 120)
    start, end = np.minimum(start, end - 1), np.maximum(start + 1, end)
    costs, gains = rng.uniform(0.5, 2.0, 120) * (end - start) ** 0.7, -rng.uniform(0.0, 2.0, 120)
    if whole:
        costs, gains = np.ceil(costs), np.ceil(gains)
    return chain_options(
        chain=(0, 9),
        from_state=np.where(start == 0, 1, 2 * start + rng.integers(0, 2, 120)),
        to_state=2 * end + rng.integers(0, 2, 120),
        costs=np.repeat(costs[:, None], columns, axis=1),
        importances=gains,
        plan_of=lambda index: StretchPlan(breaks=()),
    )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_one_cost_and_the_same_cost_twice_give_the_same_points(seed: int, whole: bool) -> None:
    one, two = (_options(seed, columns, whole=whole) for columns in (1, 2))
    fastest = float(least_to_go(one)[1, 0])
    assert math.isfinite(fastest)
    for cap in (None, 1.2 * fastest, 0.9 * fastest):
        found, expected = (
            solve_chain(each, least_to_go(each), caps=None if cap is None else np.full(each.costs.shape[1], cap))
            for each in (one, two)
        )
        if expected is None:
            assert found is None
            continue
        assert found is not None
        np.testing.assert_array_equal(found.costs[:, 0], expected.costs[:, 0])
        np.testing.assert_array_equal(found.importances, expected.importances)
        assert not np.signbit(found.importances[found.importances == 0.0]).any()


@pytest.mark.parametrize("seed", range(10))
def test_the_path_of_a_point_adds_up_to_its_cost_and_importance(seed: int) -> None:
    options = _options(seed, 1, whole=False)
    found = solve_chain(options, least_to_go(options))
    assert found is not None
    for point in range(len(found.importances)):
        path = found.path(point)
        assert options.from_state[path].tolist() == [1, *options.to_state[path[:-1]].tolist()]
        assert options.to_state[path[-1]] in options.end_states
        assert math.isclose(options.costs[path, 0].sum(), found.costs[point, 0], rel_tol=1e-12)
        assert math.isclose(options.importances[path].sum(), found.importances[point], rel_tol=1e-12)
