"""Figures by label against their definitions, one query and one pair at a time; intervals by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.evaluate import retrieval
from headwater.evaluate.classes import ClassLabels, accuracy, cover, places
from headwater.evaluate.figure import Figure, jackknife_figure, mean_figure, proportion_figure
from headwater.evaluate.hubs import hub_corrected, hub_share, occurrence_skewness
from headwater.evaluate.mislabel import found_at, mislabel_auc
from headwater.evaluate.overlap import check_same, overlap_Q
from headwater.evaluate.ranking import Ranking
from headwater.types import DataError, Scores, UsageError

LABELS = ClassLabels(train_N=np.array(list("aabbbc")), query_Q=np.array(list("abz")))
VALUES = np.array([[3.0, 1.0, 2.0, 2.0, 0.0, -1.0], [5.0, 0.0, 4.0, 3.0, -2.0, np.nan], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])


def scores_of(values_QN: np.ndarray, **changes: object) -> Scores:
    n_queries, n_rows = values_QN.shape
    ids = {"query_ids": tuple(f"q{i}" for i in range(n_queries)), "train_ids": tuple(f"r{i}" for i in range(n_rows))}
    return Scores(values_QN, **{**ids, "method": "m", "unit": None, **changes})  # pyright: ignore[reportArgumentType]


# ----------------------------------------------------------------------------------------- the paper's two, by hand


def test_accuracy_and_cover_of_a_table_one_can_read() -> None:
    ranking = Ranking(VALUES)
    assert places(LABELS) == 2  # int(6 / 3)
    assert accuracy(ranking, LABELS).value == pytest.approx(1 / 3)  # a: yes; b's first is of class a; z is no class here
    assert cover(ranking, LABELS, 2).value == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert cover(ranking, LABELS, 3).value == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize("k", [0, 7, -1])
def test_k_must_be_a_number_of_rows(k: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 6"):
        places(LABELS, k)


def test_a_query_that_ranks_nothing_has_no_part() -> None:
    values = np.array([[1.0, 1, 1, 1, 1, 1], [np.nan] * 6, [0.0, 9, 1, 2, 3, 4]])
    labels = ClassLabels(LABELS.train_N, np.array(list("aaa")))
    assert accuracy(Ranking(values), labels) == proportion_figure(1, 1)
    assert cover(Ranking(values), labels, 2).n == 1


# ------------------------------------------------------------------------------------------------- against definitions


tables = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5, float("nan")]), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


@settings(max_examples=200, deadline=None)
@given(tables, st.integers(1, 12))
def test_retrieval_is_its_definition(table: tuple[list[float], list[bool]], k: int) -> None:
    values, relevant = np.array([table[0]]), np.array([table[1]])
    ranking = Ranking(values)
    got = {
        "auroc": retrieval.auroc_Q(ranking, relevant)[0],
        "precision": retrieval.average_precision_Q(ranking, relevant)[0],
        "recall": retrieval.recall_Q(ranking, relevant, k)[0],
        "hit": retrieval.hit_Q(ranking, relevant, k)[0],
        "reciprocal": retrieval.reciprocal_rank_Q(ranking, relevant)[0],
    }
    for name, value in slow_retrieval(values[0], relevant[0], k).items():
        assert got[name] == pytest.approx(value, nan_ok=True), name


def slow_retrieval(values: np.ndarray, relevant: np.ndarray, k: int) -> dict[str, float]:
    """Pair by pair and threshold by threshold."""
    nan = float("nan")
    known = [i for i in range(len(values)) if values[i] == values[i]]
    if len({values[i] for i in known}) < 2:
        return dict.fromkeys(("auroc", "precision", "recall", "hit", "reciprocal"), nan)
    order = sorted(known, key=lambda i: (-values[i], i))
    yes, no = [i for i in known if relevant[i]], [i for i in known if not relevant[i]]
    pairs = [float(values[i] > values[j]) + 0.5 * float(values[i] == values[j]) for i in yes for j in no]
    n, precision, before = int(relevant.sum()), 0.0, 0.0
    for threshold in sorted({values[i] for i in known}, reverse=True):
        above = [i for i in known if values[i] >= threshold]
        found = sum(bool(relevant[i]) for i in above)
        precision += (found - before) * found / len(above)
        before = found
    places_found = [place for place, i in enumerate(order, start=1) if relevant[i]]
    return {
        "auroc": float(np.mean(pairs)) if pairs else nan,
        "precision": precision / n if n else nan,
        "recall": sum(place <= k for place in places_found) / n if n else nan,
        "hit": float(any(place <= k for place in places_found)) if n else nan,
        "reciprocal": (1 / places_found[0] if places_found else 0.0) if n else nan,
    }


def test_mislabel_auc_and_what_checking_finds() -> None:
    rng = np.random.default_rng(0)
    wrong = rng.random(200) < 0.2
    suspicion = np.round(rng.standard_normal(200) + 1.5 * wrong, 1)
    suspicion[7] = np.nan
    known = np.isfinite(suspicion)
    pairs = [(a > b) + 0.5 * (a == b) for a in suspicion[known & wrong] for b in suspicion[known & ~wrong]]
    figure = mislabel_auc(suspicion, wrong)
    assert figure.value == pytest.approx(np.mean(pairs))
    assert figure.interval is not None
    assert figure.interval[0] < figure.value < figure.interval[1]
    first = np.argsort(-suspicion[known], kind="stable")[:20]  # a tenth of 199, rounded up
    assert found_at(suspicion, wrong, 0.1).value == pytest.approx(wrong[known][first].sum() / wrong[known].sum())
    with pytest.raises(DataError, match="expected some of both kinds"):
        mislabel_auc(suspicion, np.zeros(200))
    with pytest.raises(UsageError, match="share of the rows"):
        found_at(suspicion, wrong, 0.0)


def test_hubs() -> None:
    values = np.array([[9.0, 1, 0, 2], [9.0, 0, 2, 1], [8.0, 3, 1, 0], [0.0, 1, 2, 9]])
    share, row = hub_share(Ranking(values))
    assert (share.value, row, share.n) == (0.75, 0, 4)
    skewness = occurrence_skewness(Ranking(values), 2)
    counts = np.array([3, 2, 2, 1])  # of the first two places
    assert skewness.value == pytest.approx(((counts - 2) ** 3).mean() / ((counts - 2) ** 2).mean() ** 1.5)
    assert occurrence_skewness(Ranking(np.eye(4)), 1).value == 0
    assert hub_share(Ranking(np.ones((2, 3))))[1] == -1


def test_hub_correction_is_each_columns_z() -> None:
    values = np.array([[1.0, 5, 0.1], [2.0, 5, np.nan], [6.0, 5, 0.3], [0.0, 5, 0.5]])
    corrected = hub_corrected(scores_of(values)).values_QN
    np.testing.assert_allclose(corrected[:, 0], (values[:, 0] - 2.25) / values[:, 0].std(ddof=1))
    np.testing.assert_array_equal(corrected[:, 1], 0)  # says the same of every query
    np.testing.assert_allclose(corrected[[0, 2, 3], 2], np.array([-0.2, 0, 0.2]) / 0.2, atol=1e-12)
    assert np.isnan(corrected[1, 2])
    with pytest.raises(UsageError, match="expected 3 or more"):
        hub_corrected(scores_of(values[:2]))


def test_overlap_of_first_rows() -> None:
    one, other = (
        Ranking(np.array([[4.0, 3, 2, 1], [1.0, 2, 3, 4], [1.0, 1, 1, 1]])),
        Ranking(np.array([[1.0, 4, 3, 2], [1, 2, 3, np.nan], [1, 2, 3, 4]])),
    )
    np.testing.assert_array_equal(overlap_Q(one, other, 2), [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(overlap_Q(one, one, 3), [1, 1, np.nan])
    few = Ranking(np.array([[np.nan, np.nan, 1.0, 2.0]]))
    np.testing.assert_array_equal(overlap_Q(few, few, 3), [2 / 3])


def test_two_matrices_must_be_of_the_same_rows() -> None:
    ours = scores_of(VALUES)
    check_same(ours, scores_of(VALUES + 1))
    check_same(ours, scores_of(VALUES, train_ids=tuple("012345"), provenance={"ids": "positions"}))
    with pytest.raises(DataError, match="6 rows, those to compare with of 5"):
        check_same(ours, scores_of(VALUES[:, :5]))
    with pytest.raises(DataError, match="other ids or another order"):
        check_same(ours, scores_of(VALUES, train_ids=ours.train_ids[::-1]))


# ------------------------------------------------------------------------------------------------------- intervals


def covered(intervals: list[Figure], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in (one.interval or (np.nan, np.nan) for one in intervals)]))


@pytest.mark.parametrize("n", [10, 100])
def test_a_mean_over_queries_is_covered(n: int) -> None:
    rng = np.random.default_rng(n)
    figures = [mean_figure(rng.beta(2, 4, size=n), seed=i) for i in range(400)]
    assert 0.92 <= covered(figures, 1 / 3) <= 0.98


def test_a_proportion_near_one_is_covered_and_never_certain() -> None:
    rng = np.random.default_rng(0)
    figures = [proportion_figure(int(rng.binomial(40, 0.95)), 40) for _ in range(1000)]
    assert 0.92 <= covered(figures, 0.95) <= 0.99
    low, high = proportion_figure(100, 100).interval or (1.0, 1.0)
    assert low < 0.97
    assert high == 1


def test_mislabel_auc_is_covered() -> None:
    rng = np.random.default_rng(1)
    wrong = np.arange(150) < 30
    figures = [mislabel_auc(rng.standard_normal(150) + wrong, wrong) for _ in range(400)]
    assert 0.92 <= covered(figures, 0.76025) <= 0.98  # Phi(1 / sqrt 2)


def test_the_jackknife_of_a_mean_is_students_interval() -> None:
    values = np.array([1.0, 4.0, 2.0, 7.0, 3.0])
    without = (values.sum() - values) / 4
    figure = jackknife_figure(float(values.mean()), without)
    half = 2.776445 * values.std(ddof=1) / np.sqrt(5)
    assert figure.interval == pytest.approx((values.mean() - half, values.mean() + half))


def test_few_or_undefined_values_have_no_interval() -> None:
    assert mean_figure(np.array([np.nan, np.nan])).interval is None
    assert mean_figure(np.array([0.5, np.nan])) == Figure(0.5, None, 1, "queries")
    assert mean_figure(np.array([np.nan])).to_json("auroc") == {"auroc": None, "auroc_interval": None}
    assert proportion_figure(0, 0).interval is None
