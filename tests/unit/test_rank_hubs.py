"""Hub correction on toys with a known answer: a hub, a planted cause, and queries without any cause."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from headwater.methods import GradCos, GradDot, Length, Lexical, Random
from headwater.rank.hubs import Reference, ReferenceQueries, benjamini_hochberg, hub_facts, reference_scores
from headwater.testing import Toy, toy_queries, toy_rows
from headwater.types import Block, Layout, Scores, UsageError

N, D, HUB, CAUSE = 80, 200, 7, 11
LAYOUT = Layout((Block("w", (D,), (D,)),))
COMMON_D = 10.0 * torch.eye(D)[0]  # what the gradients of all texts have in common


def with_gradients(toy: Toy, gradient_ND: Tensor) -> Toy:
    return replace(toy, layout=LAYOUT, features={"gradient": gradient_ND})


def measures(n: int, *, seed: int) -> Tensor:
    """[n, D] gradients of measures: what every text has in common, and what is its own."""
    return COMMON_D + torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def world() -> tuple[Toy, Toy]:
    """Row HUB is the common part alone, row CAUSE resembles query 0; the loss's gradient is minus the measure's."""
    queries_QD, rows_ND = measures(300, seed=1), measures(N, seed=2)
    rows_ND[HUB] = COMMON_D + 0.1 * (rows_ND[HUB] - COMMON_D)
    rows_ND[CAUSE] = 0.6 * queries_QD[0] + 0.6 * rows_ND[CAUSE] - 0.2 * COMMON_D
    return with_gradients(toy_rows(N, seed=3), -rows_ND), with_gradients(toy_queries(300, seed=4), queries_QD)


@pytest.fixture
def scored(world: tuple[Toy, Toy]) -> tuple[Scores, Reference]:
    index, method = world[0].index(), GradCos()
    state = method.fit(index)
    return method.score(state, index, world[1].index()), reference_scores(method, state, index, n_reference=64, seed=0)


def test_a_hub_tops_the_raw_scores_and_not_z(scored: tuple[Scores, Reference]) -> None:
    scores, reference = scored
    z_QN = reference.z(scores.values_QN)
    assert (scores.values_QN[1:].argmax(1) == HUB).mean() > 0.9
    assert (z_QN[1:].argmax(1) == HUB).mean() < 0.1


def test_a_planted_cause_tops_z_and_is_significant(scored: tuple[Scores, Reference]) -> None:
    scores, reference = scored
    z_QN = reference.z(scores.values_QN)
    q_QN = benjamini_hochberg(reference.p(z_QN))
    assert z_QN[0].argmax() == CAUSE
    assert q_QN[0, CAUSE] < 0.05
    assert (np.nanmin(q_QN[1:], axis=1) < 0.05).mean() < 0.12  # queries without a cause: about one in twenty finds something


@pytest.mark.parametrize("tail", ["upper", "lower"])
def test_p_is_uniform_without_a_cause(scored: tuple[Scores, Reference], tail: str) -> None:
    """One row per query, so that the numbers tested are independent but for the shared references."""
    scores, reference = scored
    p_QN = reference.p(reference.z(scores.values_QN), tail=tail)  # type: ignore[arg-type]
    rows = np.random.default_rng(5).choice(np.delete(np.arange(N), [CAUSE]), size=299)
    assert kstest(p_QN[np.arange(1, 300), rows], "uniform").pvalue > 0.01
    assert abs(np.delete(p_QN[1:], CAUSE, axis=1).mean() - 0.5) < 0.01


def test_hub_facts(scored: tuple[Scores, Reference]) -> None:
    scores, reference = scored
    raw = hub_facts(scores, k=5)
    corrected = hub_facts(replace(scores, values_QN=reference.z(scores.values_QN)), k=5)
    assert raw.top1_id == scores.train_ids[HUB]
    assert raw.top1_share > 0.9
    assert corrected.top1_share < 0.1
    assert raw.occurrence_skewness > 3 > 1 > corrected.occurrence_skewness
    assert (raw.n_queries, raw.k) == (300, 5)


def test_hub_facts_of_scores_that_say_nothing() -> None:
    facts = hub_facts(Scores(np.full((2, 3), np.nan, dtype=np.float32), ("q", "r"), ("a", "b", "c"), "m", None))
    assert (facts.top1_id, facts.n_queries) == (None, 0)
    everyone = hub_facts(Scores(np.ones((2, 3), dtype=np.float32), ("q", "r"), ("a", "b", "c"), "m", None))
    assert everyone.top1_share == 1
    assert everyone.occurrence_skewness == 0


# ------------------------------------------------------------------------------------------------- the reference


def test_a_reference_query_asks_for_the_row_itself() -> None:
    """Measure = minus the loss: the row is its own strongest proponent, and the gradient method accepts it as a query."""
    index = toy_rows(12, seed=1).index()
    queries = ReferenceQueries(index, np.array([4, 9]))
    scores = GradCos().score(GradCos().fit(index), index, queries)
    torch.testing.assert_close(torch.from_numpy(scores.values_QN[[0, 1], [4, 9]]), torch.ones(2))
    assert queries.ids == (index.ids[4], index.ids[9])
    torch.testing.assert_close(queries.take("representation", [1]), index.take("representation", [9]))
    torch.testing.assert_close(queries.products("gradient", torch.eye(18)), -index.take("gradient", [4, 9]).T)
    assert queries.column("prompt").tolist() == index.column("prompt")[[4, 9]].tolist()


def test_a_row_and_its_group_are_no_reference_for_themselves() -> None:
    toy = toy_rows(6, seed=1)
    toy.columns["group"][:] = ["a", "b", "a", "", "", "c"]
    reference = reference_scores(GradDot(), {}, toy.index(), n_reference=6)
    expected = np.eye(6, dtype=bool)
    expected[0, 2] = expected[2, 0] = True
    assert (np.isnan(reference.values_RN) == expected).all()


def test_the_sample_is_seeded_and_without_bad_rows() -> None:
    index = toy_rows(30, seed=1).filled(3, torch.nan).index()
    draws = [reference_scores(Random(), {}, index, n_reference=10, seed=seed).values_RN for seed in (0, 0, 1)]
    assert np.array_equal(draws[0], draws[1], equal_nan=True)
    assert not np.array_equal(draws[0], draws[2], equal_nan=True)
    everything = reference_scores(GradDot(), {}, index, n_reference=500)
    assert everything.values_RN.shape == (29, 30)
    assert np.isnan(everything.z(np.zeros((1, 30)))[0]).nonzero()[0].tolist() == [3]


def test_too_few_references_are_refused() -> None:
    with pytest.raises(UsageError, match="2 reference queries"):
        reference_scores(Random(), {}, toy_rows(9, seed=1).index(), n_reference=2)


def test_z_is_the_formula_of_the_docstring() -> None:
    values_RN = np.random.default_rng(0).normal(size=(5, 3))
    values_RN[0, 0] = np.nan
    z = Reference(values_RN).z(np.array([[1.0, 2.0, np.nan]]))[0]
    column = values_RN[1:, 0]
    assert np.isclose(z[0], (1.0 - column.mean()) / (column.std(ddof=1) * np.sqrt(1 + 1 / 4)))
    column = values_RN[:, 1]
    assert np.isclose(z[1], (2.0 - column.mean()) / (column.std(ddof=1) * np.sqrt(1 + 1 / 5)))
    assert np.isnan(z[2])


def test_the_pool_is_the_plain_leave_one_out() -> None:
    values_RN = np.random.default_rng(0).normal(size=(6, 4))
    values_RN[2, 1] = np.nan
    plain = []
    for n in range(4):
        column = values_RN[:, n][~np.isnan(values_RN[:, n])]
        for i, value in enumerate(column):
            others = np.delete(column, i)
            plain.append((value - others.mean()) / (others.std(ddof=1) * np.sqrt(1 + 1 / len(others))))
    np.testing.assert_allclose(Reference(values_RN).pooled_z, np.sort(plain))


def test_p_counts_the_pool() -> None:
    reference = Reference(np.random.default_rng(0).normal(size=(6, 4)))
    pooled = reference.pooled_z
    z_QN = np.array([[pooled[-1], pooled[0], 1e9, np.nan]])
    assert reference.p(z_QN)[0, :3].tolist() == [2 / 25, 1.0, 1 / 25]
    assert reference.p(z_QN, tail="lower")[0, :3].tolist() == [1.0, 2 / 25, 1.0]
    assert np.isnan(reference.p(z_QN)[0, 3])


def test_a_score_that_is_the_same_for_every_query_is_no_evidence() -> None:
    index, queries = toy_rows(20, seed=1).index(), toy_queries(3, seed=2).index()
    reference = reference_scores(Length(), {}, index)
    z_QN = reference.z(Length().score({}, index, queries).values_QN)
    assert (z_QN == 0).all()
    assert (reference.p(z_QN) == 1).all()


def test_a_row_that_never_scored_and_now_does_is_infinitely_far_out_and_p_says_how_rare_that_is() -> None:
    toy, asked = toy_rows(20, seed=1), toy_queries(1, seed=2)
    toy.columns["prompt"][5], asked.columns["prompt"][0] = "zebra", "zebra"
    toy.columns["response"][5], asked.columns["response"][0] = "", ""
    index, method = toy.index(), Lexical()
    state = method.fit(index)
    reference = reference_scores(method, state, index)
    z_QN = reference.z(method.score(state, index, asked.index()).values_QN)
    assert np.isposinf(z_QN[0, 5])
    assert (np.delete(z_QN[0], 5) <= 0).all()
    assert reference.p(z_QN)[0, 5] == 1 / (1 + len(reference.pooled_z))


def test_benjamini_hochberg_by_hand() -> None:
    p = np.array([[0.01, np.nan, 0.04, 0.03, 0.5], [np.nan] * 5])
    q = benjamini_hochberg(p)
    np.testing.assert_allclose(q[0], [0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(q[1]).all()
    np.testing.assert_allclose(benjamini_hochberg(p[0]), q[0])
