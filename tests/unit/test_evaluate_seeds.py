"""A mean over seeds and a difference: their values, what their intervals cover, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headwater.evaluate.figure import Figure
from headwater.evaluate.seeds import difference, over_seeds


def figure(value: float, half: float | None = 0.1) -> Figure:
    return Figure(value, None if half is None else (value - half, value + half), 40, "queries")


def test_one_seed_is_its_own_figure_and_none_is_undefined() -> None:
    assert over_seeds([figure(0.3), figure(math.nan, None)]) == figure(0.3)
    nothing = over_seeds([])
    assert math.isnan(nothing.value)
    assert nothing.interval is None


def test_equal_seeds_narrow_the_interval_by_the_root_of_their_number() -> None:
    pooled = over_seeds([figure(0.5)] * 4)
    assert pooled.interval == pytest.approx((0.45, 0.55))
    assert (pooled.n, pooled.over) == (4, "seeds")


def test_seeds_without_intervals_have_students() -> None:
    values = np.array([0.2, 0.5, 0.6])
    pooled = over_seeds([figure(value, None) for value in values])
    half = 4.302653 * values.std(ddof=1) / math.sqrt(3)
    assert pooled.interval == pytest.approx((values.mean() - half, values.mean() + half))


def test_each_side_keeps_its_own_width_and_the_bounds_hold() -> None:
    pooled = over_seeds([Figure(1.0, (0.8, 1.0), 20, "queries")] * 2, bounds=(0.0, 1.0))
    assert pooled.interval == pytest.approx((1 - 0.2 / math.sqrt(2), 1.0))
    assert over_seeds([figure(0.95, 0.2), figure(0.99, 0.2)], bounds=(0.0, 1.0)).interval[1] == 1.0  # type: ignore[index]


@pytest.mark.parametrize("between", [0.0, 1.0, 4.0])
def test_the_interval_covers(between: float) -> None:
    rng = np.random.default_rng(0)
    values_RS = between * rng.standard_normal((1500, 3)) + rng.standard_normal((1500, 3))
    found = [over_seeds([figure(value, 1.96) for value in row]).interval for row in values_RS]
    covered = np.mean([low <= 0 <= high for low, high in found if low is not None])  # type: ignore[misc]
    assert 0.90 <= covered <= 0.98


def test_a_difference_adds_the_arms_that_make_it() -> None:
    gap = difference(Figure(0.9, (0.6, 1.0), 20, "queries"), Figure(0.5, (0.1, 0.9), 10, "queries"))
    assert gap.value == pytest.approx(0.4)
    assert gap.interval == pytest.approx((0.4 - math.hypot(0.3, 0.4), 0.4 + math.hypot(0.1, 0.4)))
    assert gap.n == 10
    assert difference(figure(0.3), figure(0.2, None)).interval is None
