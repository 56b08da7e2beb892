from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.rank.topk import opponents, proponents

SCORES = st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, float("nan")]), max_size=40)


@given(SCORES, st.integers(0, 50))
def test_the_fast_way_is_the_plain_way(values: list[float], k: int) -> None:
    """Sort everything stably, drop what is not positive, cut."""
    plain = [i for i in sorted(range(len(values)), key=lambda i: -values[i] if values[i] > 0 else 0.0) if values[i] > 0][:k]
    assert proponents(np.array(values), k).tolist() == plain


@given(SCORES, st.integers(0, 50))
def test_opponents_are_the_proponents_of_the_opposite(values: list[float], k: int) -> None:
    values_N = np.array(values)
    assert opponents(values_N, k).tolist() == proponents(-values_N, k).tolist()


def test_equal_scores_stand_in_the_order_of_the_rows() -> None:
    assert proponents(np.array([1.0, 3.0, 1.0, 3.0, 1.0]), 4).tolist() == [1, 3, 0, 2]


def test_nan_and_zero_never_rank() -> None:
    values_N = np.array([np.nan, 0.0, 0.1, np.nan, -0.2], dtype=np.float32)
    assert proponents(values_N, 10).tolist() == [2]
    assert opponents(values_N, 10).tolist() == [4]


@pytest.mark.parametrize("values", [[], [np.nan, np.nan], [0.0]])
def test_nothing_to_list(values: list[float]) -> None:
    assert proponents(np.array(values), 5).tolist() == []
