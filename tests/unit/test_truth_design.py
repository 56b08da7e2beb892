"""Designs: what must hold of any set of rows, whatever the sizes and the seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.truth.design import (
    KINDS,
    Corpus,
    Designs,
    Options,
    all_rows,
    leave_each_out,
    leave_groups_out,
    leave_out,
    make_designs,
    subsets,
    without_bottom,
    without_random,
    without_top,
    without_zero,
)
from headwater.types import DataError, UsageError

SIZES, SEEDS, COUNTS = st.integers(2, 60), st.integers(0, 10_000), st.integers(1, 30)


@given(SIZES, COUNTS, st.floats(0.01, 0.99), SEEDS)
def test_subsets_have_the_size_asked_for_and_are_the_same_again(n: int, count: int, fraction: float, seed: int) -> None:
    size = round(fraction * n)
    if not 0 < size < n:
        with pytest.raises(UsageError, match="between 0 and 1"):
            subsets(n, count, fraction=fraction, seed=seed)
        return
    made = subsets(n, count, fraction=fraction, seed=seed)
    assert made.kept_DN.shape == (count, n)
    assert made.kept_DN.dtype == bool
    assert (made.kept_DN.sum(1) == size).all()
    assert np.array_equal(made.kept_DN, subsets(n, count, fraction=fraction, seed=seed).kept_DN)


@given(SIZES, COUNTS, SEEDS)
def test_more_designs_keep_those_there_were(n: int, count: int, seed: int) -> None:
    makers: list[Callable[[int], Designs]] = [
        lambda c: subsets(n, c, seed=seed),
        lambda c: leave_out(n, c, k=1, seed=seed),
        lambda c: without_random(n, 1, draws=c, seed=seed),
    ]
    for make in makers:
        fewer, more = make(count), make(count + 5)
        assert more.names[:count] == fewer.names
        assert np.array_equal(more.kept_DN[:count], fewer.kept_DN)


@given(SIZES, SEEDS, st.data())
def test_leave_out_takes_every_row_once_before_any_twice(n: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n - 1))
    a_round = n // k
    made = leave_out(n, 2 * a_round, k=k, seed=seed)
    assert ((~made.kept_DN).sum(1) == k).all()
    for part in (made.kept_DN[:a_round], made.kept_DN[a_round:]):
        assert (~part).sum(0).max() == 1


def test_half_subsets_keep_each_row_half_the_time_and_pairs_a_quarter() -> None:
    """What LDS takes for granted: rows come and go independently of each other (but for the fixed size)."""
    kept_DN = subsets(20, 4000, seed=3).kept_DN.astype(float)
    together_NN = kept_DN.T @ kept_DN / len(kept_DN)
    np.testing.assert_allclose(np.diag(together_NN), 0.5, atol=4 * 0.5 / 4000**0.5)
    off = together_NN[~np.eye(20, dtype=bool)]
    np.testing.assert_allclose(off, 0.5 * 9 / 19, atol=5 * 0.43 / 4000**0.5)


@given(st.lists(st.floats(-10, 10) | st.just(float("nan")), min_size=3, max_size=40), st.integers(1, 20))
def test_removals_by_score_leave_out_the_rows_they_name(values: list[float], k: int) -> None:
    scores_N = np.array(values)
    known = int((~np.isnan(scores_N)).sum())
    if not 0 < k < len(values):
        with pytest.raises(UsageError, match="at least one row must be left"):
            without_top(scores_N, k)
        return
    if known < k:
        with pytest.raises(DataError, match="have a score"):
            without_top(scores_N, k)
        return
    for make, key_N in ((without_top, -scores_N), (without_bottom, scores_N), (without_zero, abs(scores_N))):
        (kept_N,) = make(scores_N, k).kept_DN
        assert (~kept_N).sum() == k
        assert not np.isnan(scores_N[~kept_N]).any()
        others_N = key_N[kept_N & ~np.isnan(scores_N)]
        assert not len(others_N) or key_N[~kept_N].max() <= others_N.min()


def test_groups_leave_together_and_each_row_leaves_alone() -> None:
    by_group = leave_groups_out(["a", "b", "a", "c"])
    assert by_group.names == ("without-group/a", "without-group/b", "without-group/c")
    assert by_group.kept_DN.tolist() == [[False, True, False, True], [True, False, True, True], [True, True, True, False]]
    one_by_one = leave_each_out(["x", "y", "z"])
    assert one_by_one.names == ("without/x", "without/y", "without/z")
    assert (~one_by_one.kept_DN).tolist() == np.eye(3, dtype=bool).tolist()
    assert leave_each_out(["x", "y", "z"], [2]).kept_DN.tolist() == [[True, True, False]]
    assert all_rows(3).kept_DN.tolist() == [[True] * 3]
    with pytest.raises(DataError, match="one group"):
        leave_groups_out(["a", "a"])


def test_designs_add_up_and_have_names_of_their_own() -> None:
    both = all_rows(10) + subsets(10, 2)
    assert both.names == ("all", "half/0", "half/1")
    assert len(both) == 3
    with pytest.raises(AssertionError, match="one name"):
        _ = subsets(10, 2) + subsets(10, 2, seed=1)


def test_random_controls_are_not_the_halves_of_the_same_seed() -> None:
    assert not np.array_equal(subsets(20, 1).kept_DN, ~without_random(20, 10).kept_DN)


def test_every_kind_is_found_by_its_name() -> None:
    corpus = Corpus(ids=list("abcdef"), groups=list("xxyyzz"), scores_QN=np.arange(12.0).reshape(2, 6), labels=("q1", "q2"))
    for kind in KINDS:
        made = make_designs(kind, corpus, Options(count=2, fraction=0.5, k=2))
        assert made.kept_DN.shape[1] == 6
    assert make_designs("top", corpus, Options(k=2)).names == ("top/2/q1", "top/2/q2")
    assert make_designs("share", corpus, Options(count=1, fraction=1 / 3)).kept_DN.sum() == 2


@pytest.mark.parametrize(
    ("kind", "options", "scores", "error", "message"),
    [
        ("halves", Options(), None, UsageError, "there is no design 'halves'; there are: half, share"),
        ("leave-out", Options(), None, UsageError, "name k"),
        ("leave-out", Options(k=6), None, UsageError, "k is 6 of 6 rows"),
        ("share", Options(fraction=1.5), None, UsageError, "is 9 rows"),
        ("half", Options(count=0), None, UsageError, "0 sets of rows"),
        ("top", Options(k=2), None, UsageError, "no scores are given"),
        ("top", Options(k=2), np.zeros(5), DataError, r"shape \(5,\)"),
    ],
)
def test_what_cannot_be_made_is_refused(
    kind: str, options: Options, scores: np.ndarray | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_designs(kind, Corpus(list("abcdef"), list("aabbcc"), scores), options)
