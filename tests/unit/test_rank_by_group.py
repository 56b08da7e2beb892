"""Group scores: sums of what predicts a change, errors where they are right, refusals where a sum means nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.methods import get
from headwater.rank.by_group import group_scores, row_keys
from headwater.rank.errors import dot_errors
from headwater.testing import LAYOUT, Toy, toy_queries, toy_rows
from headwater.types import DataError, Index, Scores, UsageError, with_values


@pytest.fixture
def rows() -> Toy:
    toy = toy_rows(12, seed=1)
    toy.columns["source"][:] = ["a.jsonl"] * 5 + ["b.jsonl"] * 7
    toy.columns["label"][:] = [0, 1, np.nan] * 4
    toy.columns["group"][:] = ["g"] * 3 + [""] * 2 + ["h"] * 7
    return toy


def scored(method: str, rows: Toy) -> tuple[Scores, Index, Index]:
    index, queries = rows.index(), toy_queries(3, seed=2).index()
    one = get(method)
    return one.score(one.fit(index), index, queries), index, queries


@pytest.mark.parametrize("method", ["grad_dot", "fisher"])
def test_a_group_scores_the_sum_of_its_rows(method: str, rows: Toy) -> None:
    scores, index, _ = scored(method, rows)
    found = group_scores(scores, index, by="source")
    assert found.groups == ("a.jsonl", "b.jsonl")
    assert found.first_ids == (index.ids[0], index.ids[5])
    assert (found.n_rows_G.tolist(), found.n_unscored_G.tolist()) == ([5, 7], [0, 0])
    expected = np.stack([scores.values_QN[:, :5].sum(1), scores.values_QN[:, 5:].sum(1)], axis=1)
    np.testing.assert_allclose(found.values_QG, expected, rtol=1e-5)


def test_a_group_is_what_training_on_all_its_rows_would_do(rows: Toy) -> None:
    """The score of one row with the summed gradient, in the place of the group."""
    scores, index, queries = scored("grad_dot", rows)
    summed = torch.stack([rows.features["gradient"][:5].sum(0), rows.features["gradient"][5:].sum(0)])
    expected = -(queries.take("gradient", range(3)) @ summed.T).numpy() / 12
    np.testing.assert_allclose(group_scores(scores, index, by="source").values_QG, expected, rtol=1e-5)


def test_the_error_of_a_group_is_that_of_its_summed_gradient(rows: Toy) -> None:
    """Its rows share a sketch, so their errors go together: for rows alike the group's is their sum, and not their quadrature."""
    alike = replace(rows, features={**rows.features, "gradient": rows.features["gradient"][:1].expand(12, -1).clone()})
    scores, index, queries = scored("grad_dot", alike)
    found = group_scores(scores, index, by="source", queries=queries).standard_errors_QG
    one = dot_errors(LAYOUT, queries.take("gradient", range(3)), alike.features["gradient"][:1].expand(3, 1, -1), n_rows=12).numpy()
    assert found is not None
    np.testing.assert_allclose(found, one * [5, 7], rtol=1e-5)


def test_an_error_that_is_not_known_is_not_given(rows: Toy) -> None:
    scores, index, queries = scored("fisher", rows)
    assert group_scores(scores, index, by="source", queries=queries).standard_errors_QG is None
    scores, index, _ = scored("grad_dot", rows)
    found = group_scores(scores, index, by="source")
    assert found.standard_errors_QG is None
    assert found.to_pandas()["standard_error"].isna().all()


def test_rows_without_a_score_are_counted_and_left_out(rows: Toy) -> None:
    scores, index, queries = scored("grad_dot", rows.filled(1, torch.nan).filled(3, torch.nan))
    found = group_scores(scores, index, by="source", queries=queries)
    assert found.n_unscored_G.tolist() == [2, 0]
    np.testing.assert_allclose(found.values_QG[:, 0], np.nansum(scores.values_QN[:, :5], axis=1), rtol=1e-5)
    assert found.standard_errors_QG is not None
    assert np.isfinite(found.standard_errors_QG).all()
    nothing = group_scores(with_values(scores, np.full_like(scores.values_QN, np.nan)), index, by="source")
    assert np.isnan(nothing.values_QG).all()
    assert nothing.n_unscored_G.tolist() == [5, 7]


def test_groups_by_any_column(rows: Toy) -> None:
    index = rows.index()
    assert row_keys(index, "label") == ["0", "1", ""] * 4
    assert row_keys(index, "group") == ["g"] * 3 + list(index.ids[3:5]) + ["h"] * 7
    with pytest.raises(DataError, match="there is no column 'colour'"):
        row_keys(index, "colour")


def test_groups_by_near_duplicates(rows: Toy) -> None:
    text = "the quick brown fox jumps over the lazy dog near the old river bank at dawn"
    rows.columns["group"][:] = [f"{i}" for i in range(12)]
    for i, end in ((2, "today"), (6, "tonight"), (9, "Today")):
        rows.columns["prompt"][i], rows.columns["response"][i] = text, end
    keys = row_keys(rows.index(), "near_duplicates")
    assert keys == [rows.ids[2] if i in (6, 9) else rows.ids[i] for i in range(12)]


@pytest.mark.parametrize("method", ["grad_cos", "lexical"])
def test_a_method_that_only_ranks_is_refused(method: str, rows: Toy) -> None:
    scores, index, _ = scored(method, rows)
    with pytest.raises(UsageError, match=f"{method} only ranks.*a sum of them means nothing"):
        group_scores(scores, index)


def test_scores_about_the_rows_themselves_are_refused(rows: Toy) -> None:
    scores, index, _ = scored("self_influence", rows)
    with pytest.raises(UsageError, match="self_influence is about the row's own log-probability"):
        group_scores(scores, index)


def test_the_table_stands_best_first(rows: Toy) -> None:
    scores, index, queries = scored("grad_dot", rows)
    table: Any = group_scores(scores, index, by="source", queries=queries).to_pandas()
    assert list(table.columns) == ["query", "source", "first_id", "n_rows", "n_unscored", "score", "standard_error", "method", "unit"]
    assert len(table) == 6
    for _, part in table.groupby("query"):
        assert part["score"].is_monotonic_decreasing
    assert set(table["unit"]) == {"nats"}
