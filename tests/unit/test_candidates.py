"""First stages of a search: what they pick, and the recall that is said of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from headwater.methods.candidates import Nearest, SumIdf, pick, recall, share_interval, stage
from headwater.methods.lexical import tokenize
from headwater.testing import Toy, toy_queries, toy_rows
from headwater.types import Index, Scores, UsageError


def values(method: Any, train: Toy, asked: Toy) -> np.ndarray:
    return scores(method, train.index(), asked.index()).values_QN


def scores(method: Any, train: Index, asked: Index) -> Scores:
    return method.score(method.fit(train), train, asked)


# --------------------------------------------------------------------------------------------------------- the stages


@pytest.mark.parametrize("feature", ["representation", "representation_response"])
def test_nearest_is_by_euclidean_distance(feature: str) -> None:
    train, asked = toy_rows(40, seed=1), toy_queries(5, seed=2)
    expected_QN = -torch.cdist(asked.features[feature], train.features[feature]).square()
    torch.testing.assert_close(torch.from_numpy(values(Nearest(feature), train, asked)), expected_QN)
    other = "representation" if feature == "representation_response" else "representation_response"
    assert not np.allclose(values(Nearest(other), train, asked), expected_QN.numpy())


def test_nearest_sees_small_distances_between_large_numbers() -> None:
    """Hidden states often share a long common part: 1,000 here, distances of 0.1; float32 would see none of it."""
    train, asked = toy_rows(40, seed=1), toy_queries(1, seed=2)
    for toy in (train, asked):
        toy.features["representation"][:] = 1000 + 0.1 * torch.randn(len(toy), 7, generator=torch.Generator().manual_seed(len(toy)))
    difference_NH = asked.features["representation"].double() - train.features["representation"].double()
    np.testing.assert_allclose(values(Nearest("representation"), train, asked)[0], -difference_NH.square().sum(1), rtol=1e-4)


def test_sum_idf_is_the_closed_form() -> None:
    """`sum of log((N - n_t + 0.5) / (n_t + 0.5) + 1)` over the query's words that the row has: nothing else, and to the last digit."""
    train, asked = toy_rows(60, seed=1), toy_queries(6, seed=2)
    documents = [set(words) for words in tokenize(both(train))]
    expected_QN = np.zeros((6, 60))
    for q, query in enumerate(tokenize(both(asked))):
        for n, document in enumerate(documents):
            for word in sorted(query):
                n_t = sum(word in other for other in documents)
                expected_QN[q, n] += math.log((60 - n_t + 0.5) / (n_t + 0.5) + 1) if word in document else 0.0
    assert np.array_equal(values(SumIdf(), train, asked), expected_QN.astype(np.float32))


def test_sum_idf_does_not_see_length_or_repetition() -> None:
    train, asked = toy_rows(3, seed=1), toy_queries(1, seed=2)
    train.columns["prompt"][:] = ["brook", "brook " * 40, "brook " + "sand " * 40]
    train.columns["response"][:], asked.columns["response"][:] = "", ""
    asked.columns["prompt"][:] = "brook"
    assert len(set(values(SumIdf(), train, asked)[0].tolist())) == 1
    assert len(set(values(stage("bm25"), train, asked)[0].tolist())) == 3


def both(toy: Toy) -> list[str]:
    return [f"{prompt}\n{response}" for prompt, response in zip(toy.columns["prompt"], toy.columns["response"], strict=True)]


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(UsageError, match="picked by 'cls', expected one of representation_response, representation, idf, bm25"):
        stage("cls")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ picking


def test_the_first_k_are_picked_equal_ones_in_the_order_of_the_rows() -> None:
    found = Scores(np.array([[1.0, 3, 2, 3, 3, np.nan]], np.float32), ("q",), tuple("abcdef"), "nearest", None)
    assert pick(found, 2).tolist() == [[False, True, False, True, False, False]]
    assert pick(found, 6).tolist() == [[True, True, True, True, True, False]], "a row without a representation is never picked"


def test_a_row_that_shares_no_word_is_no_candidate() -> None:
    train, asked = toy_rows(4, seed=1), toy_queries(1, seed=2)
    train.columns["prompt"][:], train.columns["response"][:] = ["reef", "sand", "reef", "lake"], ""
    asked.columns["prompt"][:], asked.columns["response"][:] = "reef", ""
    for by in ("idf", "bm25"):
        assert pick(scores(stage(by), train.index(), asked.index()), 3).tolist() == [[True, False, True, False]]


# ------------------------------------------------------------------------------------------------------------- recall


def test_recall_by_hand() -> None:
    full_QN = np.array([[5.0, 4, 3, 2, np.nan], [1, 2, 3, 4, 5]])
    picked_QN = np.array([[True, False, True, False, False], [False, False, False, True, True]])
    found = recall(full_QN, picked_QN, at=2)
    assert found is not None
    assert (found.value, found.queries, found.at) == (0.75, 2, 2)
    assert found.chance == pytest.approx(4 / 9), "of the rows that have a score"
    assert found.interval[0] < 0.75 < found.interval[1]


def test_a_query_without_scores_says_nothing_of_recall() -> None:
    full_QN, picked_QN = np.array([[np.nan, np.nan], [1.0, 2.0]]), np.array([[False, False], [False, True]])
    found = recall(full_QN, picked_QN, at=1)
    assert found is not None
    assert (found.value, found.queries, found.chance) == (1.0, 1, 0.5)
    assert recall(full_QN[:1], picked_QN[:1], at=1) is None


def test_random_candidates_have_the_recall_of_chance() -> None:
    rng = np.random.default_rng(0)
    full_QN, picked_QN = rng.normal(size=(200, 300)), rng.random((200, 300)) < 0.1
    found = recall(full_QN, picked_QN, at=10)
    assert found is not None
    assert found.interval[0] < found.chance < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.05


@pytest.mark.parametrize(("n_queries", "mean", "spread"), [(4, 0.5, 2.0), (10, 0.3, 1.0), (32, 0.6, 4.0), (32, 0.95, 30.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(n_queries: int, mean: float, spread: float) -> None:
    """Shares of ten, whose own means differ between queries (beta distributed; a small spread is a wide difference): 2,000 draws."""
    rng = np.random.default_rng(1)
    shares = rng.binomial(10, rng.beta(mean * spread, (1 - mean) * spread, size=(2000, n_queries))) / 10
    intervals = [share_interval(list(some), trials=10) for some in shares]
    covered = np.mean([low <= mean <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.995
    assert all(0 <= low <= np.mean(some) <= high <= 1 for (low, high), some in zip(intervals, shares, strict=True))


def test_the_interval_of_one_query_is_everything() -> None:
    assert share_interval([0.7], trials=10) == (0.0, 1.0)
    assert share_interval([1.0] * 30, trials=10)[0] > 0.95
