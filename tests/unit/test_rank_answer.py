from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.methods import GradCos, GradDot, Lexical
from headwater.rank.answer import rank
from headwater.rank.errors import cosine_errors, dot_errors
from headwater.rank.hubs import benjamini_hochberg, reference_scores
from headwater.testing import LAYOUT, toy_queries, toy_rows
from headwater.types import IntegrityError, Layout, LayoutMismatch, Method

FIELDS = ["id", "score", "standard_error", "z", "p", "q", "hub_rank", "near_duplicates"]


@pytest.mark.parametrize("method", [GradDot(), GradCos(), Lexical()], ids=lambda method: method.name)
def test_rows_say_what_the_parts_say(method: Method) -> None:
    index, queries = toy_rows(20, seed=1).index(), toy_queries(3, seed=2).index()
    state = method.fit(index)
    scores, reference = method.score(state, index, queries), reference_scores(method, state, index, n_reference=12)
    answer = rank(scores, reference, index, queries, k=4)
    assert list(answer) == list(queries.ids)
    z_QN = reference.z(scores.values_QN)
    for q, query_id in enumerate(queries.ids):
        assert [(row["id"], row["score"]) for row in answer[query_id]["proponents"]] == [
            (id, score) for id, score in scores.top(q, 4) if score > 0
        ]
        for name, tail in (("proponents", "upper"), ("opponents", "lower")):
            p_N = reference.p(z_QN[q : q + 1], tail=tail)[0]
            for row in answer[query_id][name]:
                n = index.ids.index(row["id"])
                assert list(row) == FIELDS
                assert row["z"] == (z_QN[q, n] if np.isfinite(z_QN[q, n]) else None)
                assert (row["p"], row["q"]) == (p_N[n], benjamini_hochberg(p_N)[n])
                further = z_QN[q] > z_QN[q, n] if tail == "upper" else z_QN[q] < z_QN[q, n]
                assert row["hub_rank"] == 1 + further.sum()
    json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize("method", [GradDot(), GradCos()], ids=lambda method: method.name)
def test_standard_errors_are_the_sketchs(method: Method) -> None:
    index, queries = toy_rows(20, seed=1).index(), toy_queries(2, seed=2).index()
    answer = rank(method.score(method.fit(index), index, queries), None, index, queries, k=3)
    rows = answer[queries.ids[1]]["opponents"]
    listed_1KD = index.take("gradient", index.positions_of([row["id"] for row in rows]))[None]
    asked_1D = queries.take("gradient", [1])
    expected = (
        dot_errors(LAYOUT, asked_1D, listed_1KD, n_rows=20) if method.name == "grad_dot" else cosine_errors(LAYOUT, asked_1D, listed_1KD)
    )
    torch.testing.assert_close(torch.tensor([row["standard_error"] for row in rows]), expected[0])
    assert (expected > 0).all()


def test_a_methods_own_standard_errors_come_first() -> None:
    index, queries = toy_rows(6, seed=1).index(), toy_queries(1, seed=2).index()
    scores = GradDot().score({}, index, queries)
    scores = replace(scores, standard_errors_QN=np.arange(6, dtype=np.float32)[None])
    for row in rank(scores, None, index, queries)[queries.ids[0]]["proponents"]:
        assert row["standard_error"] == index.ids.index(row["id"])


def test_what_is_not_known_is_null() -> None:
    index, queries = toy_rows(20, seed=1).index(), toy_queries(1, seed=2).index()
    method = Lexical()
    rows = rank(method.score(method.fit(index), index, queries), None, index, queries)[queries.ids[0]]
    assert rows["opponents"] == []
    assert all(row[name] is None for row in rows["proponents"] for name in ("standard_error", "z", "p", "q", "hub_rank"))


def test_bad_rows_and_bad_queries_are_not_listed() -> None:
    index = toy_rows(8, seed=1).filled(3, torch.nan).index()
    queries = toy_queries(2, seed=2).filled(1, torch.nan).index()
    method = GradCos()
    state = method.fit(index)
    answer = rank(method.score(state, index, queries), reference_scores(method, state, index), index, queries, k=20)
    listed = {row["id"] for name in ("proponents", "opponents") for row in answer[queries.ids[0]][name]}
    assert listed == set(index.ids) - {index.ids[3]}
    assert answer[queries.ids[1]] == {"proponents": [], "opponents": []}
    json.dumps(answer, allow_nan=False)


def test_near_duplicates_name_each_other() -> None:
    toy, method = toy_rows(10, seed=1), GradCos()
    toy = toy.rows([*range(10), 4])
    asked = toy_queries(1, seed=2)
    asked = replace(asked, features={**asked.features, "gradient": -toy.features["gradient"][[4]]})
    index, queries = toy.index(), asked.index()
    first, second, *rest = rank(method.score(method.fit(index), index, queries), None, index, queries)[queries.ids[0]]["proponents"]
    assert (first["id"], first["near_duplicates"]) == (index.ids[4], [index.ids[10]])
    assert (second["id"], second["near_duplicates"]) == (index.ids[10], [index.ids[4]])
    assert all(row["near_duplicates"] == [] for row in rest)


def test_scores_of_other_rows_are_refused() -> None:
    toy, queries = toy_rows(10, seed=1), toy_queries(1, seed=2).index()
    scores = GradDot().score({}, toy.index(), queries)
    other = toy.rows(range(9)).index()
    with pytest.raises(IntegrityError, match="name other rows"):
        rank(scores, None, other, queries)
    with pytest.raises(IntegrityError, match="the reference has 9 rows"):
        rank(scores, reference_scores(GradDot(), {}, other), toy.index(), queries)
    with pytest.raises(LayoutMismatch):
        rank(scores, None, toy.index(), replace(toy_queries(1, seed=2), layout=Layout(LAYOUT.blocks, sketch_seed=9)).index())
