"""The noise floor: known ratios, an interval that covers as often as it says, and what has no answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from headwater.evaluate.noise import noise_floor
from headwater.evaluate.overlap import rank_correlation_Q
from headwater.evaluate.ranking import Ranking
from headwater.types import UsageError


def test_mean_over_spread_of_each_query() -> None:
    found = noise_floor(np.array([[1.0, -3.0], [3.0, -5.0]]))
    np.testing.assert_allclose(found.ratio_Q, [2 / 2**0.5, 4 / 2**0.5])
    assert found.n_Q.tolist() == [2, 2]
    assert found.clear_Q().tolist() == [False, True]


def test_the_interval_covers_the_true_ratio() -> None:
    rng, true = np.random.default_rng(0), 1.5
    found = noise_floor(rng.normal(true, 1.0, size=(6, 400)))
    covered = (found.interval_Q2[:, 0] <= true) & (true <= found.interval_Q2[:, 1])
    assert 0.92 <= covered.mean() <= 0.98
    assert (found.interval_Q2[:, 0] <= found.ratio_Q).all()
    assert (found.ratio_Q <= found.interval_Q2[:, 1]).all()


def test_pure_noise_is_not_clear() -> None:
    found = noise_floor(np.random.default_rng(1).normal(size=(6, 200)))
    assert found.clear_Q().mean() < 0.01
    assert (found.interval_Q2[:, 0] == 0).mean() > 0.9


def test_a_training_that_diverged_has_no_part() -> None:
    effects_SQ = np.array([[1.0, 1.0, np.nan], [2.0, np.nan, np.nan], [3.0, 3.0, np.nan]])
    found = noise_floor(effects_SQ)
    assert found.n_Q.tolist() == [3, 2, 0]
    np.testing.assert_allclose(found.ratio_Q[:2], [2.0, 2 / 2**0.5])
    assert np.isnan(found.ratio_Q[2])
    assert found.clear_Q().tolist() == [True, False, False]


def test_seeds_that_agree_have_no_noise() -> None:
    found = noise_floor(np.array([[0.0, 2.0], [0.0, 2.0]]))
    assert found.ratio_Q.tolist() == [0.0, np.inf]
    assert found.clear_Q().tolist() == [False, True]


def test_one_seed_says_nothing_of_noise() -> None:
    found = noise_floor(np.ones((1, 3)))
    assert not found.known_Q.any()
    assert not found.clear_Q().any()


def test_effects_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[seeds, queries\]"):
        noise_floor(np.ones(3))


def test_rank_correlation_is_spearmans_over_rows_that_both_have() -> None:
    rng = np.random.default_rng(2)
    one_QN, other_QN = rng.normal(size=(3, 30)), rng.integers(5, size=(3, 30)).astype(float)
    one_QN[1, ::3], other_QN[1, 1] = np.nan, np.nan
    other_QN[2] = 1.0
    found_Q = rank_correlation_Q(Ranking(one_QN), Ranking(other_QN))
    both_N = np.isfinite(one_QN[1]) & np.isfinite(other_QN[1])
    expected = [spearmanr(one_QN[0], other_QN[0])[0], spearmanr(one_QN[1][both_N], other_QN[1][both_N])[0], np.nan]
    np.testing.assert_allclose(found_Q, expected)
