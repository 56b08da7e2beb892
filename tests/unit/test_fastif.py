"""FastIF: the influence of the candidates, no number for the other rows, and the recall that is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.curvature import Fisher, LiSSA
from headwater.methods import FastIF, get
from headwater.methods.candidates import Nearest
from headwater.methods.influence import Influence
from headwater.testing import Toy, toy_queries, toy_rows
from headwater.types import Scores, UsageError

TRAIN, QUERIES = toy_rows(80, seed=1), toy_queries(9, seed=2)
FISHER = {"name": "fisher", "damping": 0.5}


def score(method: Any, *, train: Toy = TRAIN, queries: Toy = QUERIES) -> Scores:
    index = train.index()
    return method.score(method.fit(index), index, queries.index())


def test_the_candidates_have_the_influence_s_scores_and_the_others_none() -> None:
    found, full = score(FastIF(k=8, curvature=FISHER)), score(Influence(Fisher(damping=0.5)))
    looked_at_QN = np.isfinite(found.values_QN)
    assert looked_at_QN.sum(1).tolist() == [8] * 9
    np.testing.assert_allclose(found.values_QN[looked_at_QN], full.values_QN[looked_at_QN], rtol=1e-4, atol=1e-7)
    near_QN = score(Nearest("representation_response")).values_QN
    for near_N, looked_at_N in zip(near_QN, looked_at_QN, strict=True):
        assert set(np.argsort(-near_N)[:8]) == set(np.flatnonzero(looked_at_N))


def test_a_share_of_the_rows_or_so_many() -> None:
    a_tenth, eight, every = (
        score(FastIF(curvature=FISHER)),
        score(FastIF(k=8, curvature=FISHER)),
        score(FastIF(share=1.0, curvature=FISHER)),
    )
    assert np.array_equal(a_tenth.values_QN, eight.values_QN, equal_nan=True)
    assert np.isfinite(every.values_QN).all()


@pytest.mark.parametrize("by", ["representation", "representation_response", "idf", "bm25"])
def test_the_provenance_says_what_was_looked_at_and_what_it_holds(by: Any) -> None:
    found, full = score(FastIF(k=20, by=by, curvature=FISHER, recall_at=6)), score(Influence(Fisher(damping=0.5)))
    facts = found.provenance["candidates"]
    picked_QN = np.isfinite(found.values_QN)
    held = [picked_N[np.argsort(-full_N)[:6]].mean() for picked_N, full_N in zip(picked_QN, full.values_QN, strict=True)]
    assert facts["recall"]["value"] == pytest.approx(np.mean(held))
    assert facts["looked_at"] == facts["recall"]["chance"] == 0.25
    assert (facts["recall"]["queries"], facts["recall"]["at"]) == (9, 6)
    (note,) = found.provenance["notes"]
    low, high = facts["recall"]["interval"]
    assert f"20 of 80 rows looked at for each query (first by {by})" in note
    assert f"{np.mean(held):.0%} (95 % interval {low:.0%} to {high:.0%}, 9 queries; chance 25%)" in note


def test_recall_is_measured_on_a_sample_from_all_over_the_queries() -> None:
    many = replace(toy_queries(60, seed=5), ids=tuple(f"q{i}" for i in range(60)))
    assert score(FastIF(k=8, curvature=FISHER), queries=many).provenance["candidates"]["recall"]["queries"] == 32


def test_a_bad_query_has_no_score_and_is_not_counted() -> None:
    found = score(FastIF(k=8, curvature=FISHER), queries=QUERIES.filled(4, torch.nan))
    assert np.isnan(found.values_QN[4]).all()
    assert found.provenance["candidates"]["recall"]["queries"] == 8
    alone = score(FastIF(k=8, curvature=FISHER), queries=QUERIES.filled(0, torch.nan).rows([0]))
    assert alone.provenance["candidates"]["recall"] is None


@pytest.mark.parametrize("curvature", ["lissa", FISHER, {"name": "lissa", "batch_rows": 4, "max_steps": 50, "average": True}])
def test_the_number_of_workers_changes_no_number(curvature: Any) -> None:
    """Nine queries are three groups, whoever solves them. Bit by bit: the suite runs on one thread."""
    one, two, five = (score(FastIF(k=8, curvature=curvature, workers=workers)) for workers in (1, 2, 5))
    assert np.array_equal(one.values_QN, two.values_QN, equal_nan=True)
    assert np.array_equal(one.values_QN, five.values_QN, equal_nan=True)
    assert one.provenance["solve"] == two.provenance["solve"]


def test_a_divergence_never_becomes_a_nan() -> None:
    """A row of fifty times the length is in few batches: the scale doubles, and where there were too few steps it is said."""
    train = replace(TRAIN, features={**TRAIN.features, "gradient": TRAIN.features["gradient"].clone()})
    train.features["gradient"][11] *= 50
    for max_steps in (5, 400):
        method = FastIF(k=8, curvature={"name": "lissa", "damping": 1.0, "batch_rows": 1, "max_steps": max_steps})
        found = score(method, train=train)
        assert np.isfinite(found.values_QN).sum(1).tolist() == [8] * 9
        assert found.provenance["solve"]["status"] in ("diverged", "max_steps")
    assert found.provenance["solve"]["scale"] > 2 * float(method.fit(train.index())["scale"])


def test_a_state_of_another_stage_is_not_read_as_ones_own() -> None:
    """The lexical stage keeps words in the state; they come back from it."""
    method = FastIF(k=20, by="idf", curvature=FISHER)
    index = TRAIN.index()
    state = method.fit(index)
    assert {"stage/data", "stage/vocabulary", "damping"} <= state.keys()
    again = method.score({name: tensor.clone() for name, tensor in state.items()}, index, QUERIES.index())
    assert np.array_equal(again.values_QN, score(method).values_QN, equal_nan=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3, "share": 0.1}, "k is 3 and share is 0.1; give one of the two"),
        ({"k": 0}, "k is 0, expected 1 or more rows"),
        ({"share": 1.5}, "share is 1.5, expected above 0 and at most 1"),
        ({"workers": 0}, "workers is 0, expected 1 or more"),
        ({"by": "length"}, "picked by 'length'"),
        ({"curvature": "hessian"}, "there is no curvature 'hessian'"),
        ({"mode": "sketched"}, "mode is 'sketched'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get("fastif", **options)


def test_recommend_is_of_these_rows() -> None:
    method = FastIF(k=8)
    advice = method.recommend(TRAIN.index())
    mended = replace(method, curvature=advice.lissa)
    assert isinstance(mended.curvature, LiSSA)
    found = score(mended)
    assert found.provenance["solve"]["decay"] >= 3
