"""Agreement with a bank: against scipy one query at a time, on a world whose answer is known, and for what is no bank of these rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import linregress, pearsonr, spearmanr

from headwater.evaluate import lds
from headwater.evaluate.agreement import CELLS, Kind, agreement
from headwater.evaluate.lds import (
    agreements,
    families,
    matched,
    mean_outcomes,
    noise_ceiling,
    paired_difference,
    predicted_outcomes,
    tables,
)
from headwater.evaluate.summary import evaluate
from headwater.evaluate.two_way import query_only, two_way_figure, variances
from headwater.types import DataError, Scores, Truth

N, Q = 40, 6
PLAIN: dict[Kind, Any] = {
    "spearman": lambda x, y: spearmanr(x, y).statistic,
    "pearson": lambda x, y: pearsonr(x, y).statistic,
    "slope": lambda x, y: linregress(x, y).slope,
}


def world(*, designs: str = "half", n_designs: int = 40, seeds: int = 2, noise: float = 0.0, seed: int = 0) -> tuple[Scores, Truth]:
    """Outcomes are sums of known effects over the kept rows, and the scores are these effects."""
    rng = np.random.default_rng(seed)
    effects_QN = rng.standard_normal((Q, N))
    kept_DN = np.ones((n_designs, N), dtype=bool)
    for d in range(n_designs):
        gone = {"half": rng.permutation(N)[: N // 2], "without": [d], "group": rng.permutation(N)[:3]}[designs]
        kept_DN[d, gone] = False
    names = tuple(f"{designs}/{d}" for d in range(n_designs))
    outcomes_DSQ = (kept_DN @ effects_QN.T)[:, None] + noise * rng.standard_normal((n_designs, seeds, Q))
    rows, queries = tuple(f"r{n}" for n in range(N)), tuple(f"q{q}" for q in range(Q))
    truth = Truth(outcomes_DSQ, kept_DN, rows, queries, tuple(range(seeds)), "cold", "nats", designs=names)
    return Scores(effects_QN, queries, rows, "known", "nats"), truth


# ------------------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("kind", list(PLAIN))
@pytest.mark.parametrize("cells", [10, CELLS])
def test_agreement_and_its_jackknife_are_scipys(kind: Kind, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ties, and with outcomes missing here and there; in blocks of one query, and all at once."""
    monkeypatch.setattr("headwater.evaluate.agreement.CELLS", cells)
    rng = np.random.default_rng(0)
    x_DQ = rng.standard_normal((15, 4)).round(1)
    y_DQ = (x_DQ + rng.standard_normal((15, 4))).round(1)
    x_DQ[2, 1], y_DQ[5, 1], y_DQ[9, 2] = np.nan, np.nan, np.nan
    table = agreement(x_DQ, y_DQ, kind=kind)
    for q in range(4):
        known = np.flatnonzero(np.isfinite(x_DQ[:, q]) & np.isfinite(y_DQ[:, q]))
        x, y, n = x_DQ[known, q], y_DQ[known, q], len(known)
        assert table.value_Q[q] == pytest.approx(PLAIN[kind](x, y))
        pseudo = [n * PLAIN[kind](x, y) - (n - 1) * PLAIN[kind](np.delete(x, i), np.delete(y, i)) for i in range(n)]
        np.testing.assert_allclose(table.pseudo_DQ[known, q], pseudo)
        assert np.isnan(np.delete(table.pseudo_DQ[:, q], known)).all()


def test_undefined_is_nan_and_not_averaged_in() -> None:
    x_DQ = np.random.default_rng(0).standard_normal((8, 3))
    y_DQ = x_DQ.copy()
    y_DQ[:, 1] = 2.0  # does not vary
    y_DQ[:5, 2] = np.nan  # three designs are too few
    table = agreement(x_DQ, y_DQ, kind="spearman")
    np.testing.assert_array_equal(table.value_Q, [1, np.nan, np.nan])
    assert table.value == 1
    assert two_way_figure(table).n == 1


# ------------------------------------------------------------------------------------------------------ known worlds


def test_true_effects_agree_fully_and_their_negative_not_at_all() -> None:
    scores, truth = world()
    found = agreements(scores, truth)["lds"]
    assert found.spearman.value == pytest.approx(1)
    assert found.pearson.value == pytest.approx(1)
    assert found.slope.value == pytest.approx(1)
    assert (found.kept_share, found.n_designs, found.n_seeds) == (0.5, 40, 2)
    flipped = agreements(replace(scores, values_QN=-scores.values_QN), truth)["lds"]
    assert flipped.spearman.value == pytest.approx(-1)
    assert flipped.slope.value == pytest.approx(-1)


def test_a_proponent_is_a_row_whose_removal_lowers_the_measure() -> None:
    """One row, one query: the sign is the house's."""
    kept_DN = np.array([[True, True], [False, True], [True, False], [False, False]])
    truth = Truth(np.array([5.0, 2, 6, 3]).reshape(4, 1, 1), kept_DN, ("good", "bad"), ("q",), (0,), "cold", "nats")
    scores = Scores(np.array([[3.0, -1.0]]), ("q",), ("good", "bad"), "known", "nats")
    assert agreement(predicted_outcomes(scores, truth), mean_outcomes(truth), kind="pearson").value == pytest.approx(1)


@pytest.mark.parametrize(("designs", "family"), [("without", "leave_one_out"), ("group", "group_removal"), ("half", "lds")])
def test_leaving_one_out_or_a_group_has_a_slope(designs: str, family: str) -> None:
    scores, truth = world(designs=designs)
    found = agreements(replace(scores, values_QN=scores.values_QN / 4), truth)
    assert list(found) == [family]
    assert found[family].slope.value == pytest.approx(4)  # the effects are four times what is predicted
    assert found[family].spearman.value == pytest.approx(1)


def test_families_are_told_apart_in_one_bank() -> None:
    parts = [world(designs=name)[1] for name in ("half", "without", "group")]
    everything = replace(
        parts[0],
        kept_DN=np.vstack([np.ones((1, N), dtype=bool), *(part.kept_DN for part in parts)]),
        outcomes_DSQ=np.concatenate([parts[0].outcomes_DSQ[:1], *(part.outcomes_DSQ for part in parts)]),
        designs=("all", *(name for part in parts for name in part.designs)),
    )
    found = families(everything)
    assert {name: (places[0], len(places)) for name, places in found.items()} == {
        "lds": (1, 40),
        "leave_one_out": (41, 40),
        "group_removal": (81, 40),
    }
    three = replace(everything, kept_DN=everything.kept_DN[:4], outcomes_DSQ=everything.outcomes_DSQ[:4], designs=everything.designs[:4])
    assert families(three) == {}
    with pytest.raises(DataError, match="no 4 of one kind"):
        evaluate(world()[0], truth=three)


@pytest.mark.parametrize(("way", "sign"), [("down", 1), ("up", -1)])
def test_tail_patches_are_of_the_rows_stepped_on(way: str, sign: int) -> None:
    """A step towards a proponent raises the measure, a step away from it lowers it: both agree with its score."""
    scores, _ = world()
    kept_DN = np.vstack([np.zeros((1, N), dtype=bool), np.eye(N, dtype=bool)])
    outcomes_DSQ = 7 + 0.01 * sign * (kept_DN @ scores.values_QN.T)[:, None]
    names = ("none", *(f"step/r{n}" for n in range(N)))
    truth = Truth(outcomes_DSQ, kept_DN, scores.train_ids, scores.query_ids, (0,), "tail_patch", "nats", designs=names, recipe={"way": way})
    result = evaluate(scores, truth=truth)
    assert result.figures["tail_patch_spearman"].value == pytest.approx(1)
    assert result.figures["tail_patch_slope"].value == pytest.approx(0.01)  # the learning rate
    assert result.removal == ()


@pytest.mark.parametrize("row_change", [-1.0, -0.1, 1.0])
def test_a_response_to_another_weight_of_the_rows(row_change: float) -> None:
    """The outcome is the query's measure once the rows left out weigh more or less: agreement and slope are 1 whichever way."""
    scores, truth = world(designs="without", seeds=1)
    outcomes_DSQ = 3 + row_change * (~truth.kept_DN @ scores.values_QN.T)[:, None]
    found = agreements(scores, replace(truth, outcomes_DSQ=outcomes_DSQ, kind="pbrf", recipe={"row_change": row_change}))["leave_one_out"]
    assert found.spearman.value == pytest.approx(1)
    assert found.slope.value == pytest.approx(1)


def test_what_diverged_is_left_out() -> None:
    scores, truth = world(noise=0.1)
    outcomes_DSQ = truth.outcomes_DSQ.copy()
    outcomes_DSQ[3, 0] = np.nan  # one seed of two
    outcomes_DSQ[4] = np.nan
    found = tables(scores, replace(truth, outcomes_DSQ=outcomes_DSQ), np.arange(40))["pearson"]
    kept = np.delete(np.arange(40), 4)
    outcome_DQ = np.concatenate([truth.outcomes_DSQ[:3].mean(1), truth.outcomes_DSQ[3:4, 1], truth.outcomes_DSQ[5:].mean(1)])
    expected = [pearsonr(predicted_outcomes(scores, truth)[kept, q], outcome_DQ[:, q]).statistic for q in range(Q)]
    np.testing.assert_allclose(found.value_Q, expected)


def test_a_row_without_a_score_adds_nothing_and_a_query_without_any_is_undefined() -> None:
    scores, truth = world()
    values_QN = scores.values_QN.copy()
    values_QN[0, 5], values_QN[2] = np.nan, np.nan
    predicted_DQ = predicted_outcomes(replace(scores, values_QN=values_QN), truth)
    expected_D = truth.kept_DN @ np.where(np.arange(N) == 5, 0, scores.values_QN[0])
    np.testing.assert_allclose(predicted_DQ[:, 0], expected_D)
    assert np.isnan(predicted_DQ[:, 2]).all()


# ---------------------------------------------------------------------------------------------------------- matching


def test_rows_and_queries_are_matched_by_id_in_any_order() -> None:
    scores, truth = world()
    rng = np.random.default_rng(1)
    rows, queries = rng.permutation(N), rng.permutation(Q)[:4]
    shuffled = replace(
        scores,
        values_QN=scores.values_QN[np.ix_(queries, rows)],
        train_ids=tuple(scores.train_ids[n] for n in rows),
        query_ids=tuple(scores.query_ids[q] for q in queries),
    )
    ours, bank = matched(shuffled, truth)
    assert ours.query_ids == bank.query_ids == tuple(sorted(shuffled.query_ids))
    assert agreements(ours, bank)["lds"].spearman.value == pytest.approx(1)


def test_positions_are_matched_by_order() -> None:
    scores, truth = world()
    counted = replace(scores, train_ids=tuple(map(str, range(N))), query_ids=tuple(map(str, range(Q))))
    assert agreements(*matched(counted, truth))["lds"].spearman.value == pytest.approx(1)


def test_a_bank_of_other_rows_is_refused() -> None:
    scores, truth = world()
    others = tuple(f"x{n}" for n in range(N))
    with pytest.raises(DataError, match="another corpus"):
        matched(replace(scores, train_ids=others), truth)
    with pytest.raises(DataError, match="none in common"):
        matched(replace(scores, query_ids=tuple(f"x{q}" for q in range(Q))), truth)
    with pytest.raises(DataError, match="39 in common"):
        matched(replace(scores, train_ids=(*scores.train_ids[:-1], "x")), truth)
    with pytest.raises(DataError, match="of 41 training rows and the bank of 40"):
        matched(Scores(np.zeros((Q, N + 1)), scores.query_ids, (*scores.train_ids, "x"), "m", None), truth)
    with pytest.raises(DataError, match="none in common"):
        matched(Scores(np.zeros((Q, N - 1)), scores.query_ids, tuple(map(str, range(N - 1))), "m", None), truth)


# ----------------------------------------------------------------------------------------------------- its own noise


def test_the_ceiling_is_what_the_expected_outcome_reaches() -> None:
    for seeds in (2, 3, 4):
        scores, truth = world(n_designs=300, seeds=seeds, noise=4.0)
        expected_DQ = predicted_outcomes(scores, truth)
        reached = agreement(expected_DQ, mean_outcomes(truth), kind="spearman").value
        ceiling = noise_ceiling(truth.outcomes_DSQ)
        assert ceiling is not None
        assert ceiling.value == pytest.approx(reached, abs=0.03)
        assert ceiling.interval is not None
        assert ceiling.interval[0] < reached < ceiling.interval[1]


def test_one_seed_has_no_ceiling_and_pure_noise_has_one_near_zero() -> None:
    noise = np.random.default_rng(0).standard_normal((100, 2, 30))
    assert noise_ceiling(noise[:, :1]) is None
    ceiling = noise_ceiling(noise)
    assert ceiling is not None
    assert ceiling.value < 0.3  # the root of a reliability near 0
    assert ceiling.interval is not None
    assert ceiling.interval[0] == 0


def test_the_two_way_interval_knows_that_queries_share_designs() -> None:
    """Where a retrained model is good or bad for all queries at once, a thousand queries are not a thousand measurements."""
    rng = np.random.default_rng(0)
    shared_D = rng.standard_normal(40)
    x_DQ = rng.standard_normal((40, 1)) + 0.1 * rng.standard_normal((40, 200))
    y_DQ = x_DQ + 2 * shared_D[:, None] + 0.1 * rng.standard_normal((40, 200))
    table = agreement(x_DQ, y_DQ, kind="spearman")
    both, alone = two_way_figure(table, correlation=True).interval, query_only(table).interval
    assert both is not None
    assert alone is not None
    assert both[1] - both[0] > 5 * (alone[1] - alone[0])
    parts = variances(table)
    assert parts.designs > 20 * parts.queries
    assert parts.total >= parts.designs


def test_a_paired_difference_is_narrower_than_either() -> None:
    scores, truth = world(noise=6.0, n_designs=60)
    rng = np.random.default_rng(0)
    near = replace(scores, values_QN=scores.values_QN + 0.2 * rng.standard_normal((Q, N)))
    one, other = (tables(one, truth, np.arange(60))["spearman"] for one in (scores, near))
    difference = paired_difference(one, other)
    assert difference.value == pytest.approx(one.value - other.value)
    widths = [high - low for low, high in (figure.interval or (0, 0) for figure in (difference, two_way_figure(one, correlation=True)))]
    assert widths[0] < 0.6 * widths[1]


def test_intervals_stay_within_minus_one_and_one_and_need_four_designs() -> None:
    x_DQ = np.random.default_rng(0).standard_normal((6, 5))
    figure = two_way_figure(agreement(x_DQ, x_DQ + 0.05, kind="pearson"), correlation=True)
    assert figure.interval is not None
    assert figure.interval[1] <= 1
    assert two_way_figure(agreement(x_DQ[:3], x_DQ[:3], kind="pearson")).interval is None


def effects_and_scores(n_queries: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True effects, and two methods' scores, each with an error of its own."""
    effects_QN = rng.standard_normal((n_queries, N))
    return effects_QN, *(effects_QN + error * rng.standard_normal((n_queries, N)) for error in (0.5, 0.8))


def in_the_population(effects_QN: np.ndarray, scores_QN: np.ndarray, noise: float) -> tuple[float, float]:
    """Mean Pearson and mean slope over all half subsets: a half's sum varies as `N / (4 (N - 1))` times the rows' centred products."""
    e_QN, s_QN = effects_QN - effects_QN.mean(1, keepdims=True), scores_QN - scores_QN.mean(1, keepdims=True)
    es_Q, ss_Q, ee_Q = ((one * other).sum(1) * N / (4 * (N - 1)) for one, other in ((e_QN, s_QN), (s_QN, s_QN), (e_QN, e_QN)))
    return float((es_Q / np.sqrt(ss_Q * (ee_Q + noise**2))).mean()), float((es_Q / ss_Q).mean())


def test_differences_and_slopes_are_covered() -> None:
    """In a world where what is true follows from the rows' effects, with noise that all queries of a retrained model share."""
    rng, shared, own = np.random.default_rng(0), 2.0, 1.0
    effects_QN, *methods = effects_and_scores(20_000, rng)
    true = [in_the_population(effects_QN, scores_QN, float(np.hypot(shared, own))) for scores_QN in methods]
    held = {"difference": 0, "slope": 0}
    for study in range(200):
        effects_QN, *methods = effects_and_scores(20, rng)
        kept_DN = rng.permuted(np.tile(np.arange(N) < N // 2, (40, 1)), axis=1)
        outcome_DQ = kept_DN @ effects_QN.T + shared * rng.standard_normal((40, 1)) + own * rng.standard_normal((40, 20))
        one, other = (agreement(kept_DN @ scores_QN.T, outcome_DQ, kind="pearson") for scores_QN in methods)
        slope = agreement(kept_DN @ methods[0].T, outcome_DQ, kind="slope")
        figures = {"difference": paired_difference(one, other, seed=study), "slope": two_way_figure(slope, seed=study)}
        for (name, figure), truth in zip(figures.items(), (true[0][0] - true[1][0], true[0][1]), strict=True):
            low, high = figure.interval or (np.nan, np.nan)
            held[name] += low <= truth <= high
    assert 0.9 <= held["difference"] / 200 <= 0.99
    assert 0.9 <= held["slope"] / 200 <= 0.99


@given(st.integers(2, 9))
def test_splits_are_disjoint_halves_and_none_comes_twice(n_seeds: int) -> None:
    found = lds._splits(n_seeds)
    assert 1 <= len(found) <= 2 * lds.SPLITS
    assert len({(tuple(one), tuple(other)) for one, other in found}) == len(found)
    for one, other in found:
        assert len(one) == len(other) == n_seeds // 2
        assert not set(one) & set(other)


def test_an_interval_holds_the_value_that_it_is_given_with() -> None:
    """Near 1 the bias of a correlation over few designs is larger than the interval is wide."""
    rng = np.random.default_rng(5)
    expected_DQ = rng.normal(size=(24, 200))
    figure = two_way_figure(agreement(expected_DQ, expected_DQ + 0.1 * rng.normal(size=(24, 200)), kind="spearman"), correlation=True)
    assert figure.interval is not None
    assert figure.interval[0] <= figure.value <= figure.interval[1]
