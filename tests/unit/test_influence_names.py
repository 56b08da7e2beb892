"""Influence under the names of its curvatures: options, table, scores, and what the provenance says of a solve."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from headwater import curvature
from headwater.curvature import CG, DataInf, Fisher, LiSSA
from headwater.methods import get, influence, names, register, table
from headwater.methods.influence import Influence
from headwater.testing import toy_queries, toy_rows
from headwater.types import Method, UsageError

CURVATURES = [name for name in curvature.names() if name != "identity"]
TRAIN, QUERIES = toy_rows(20, seed=1).index(), toy_queries(4, seed=2).index()


def test_every_curvature_is_a_method_under_its_name() -> None:
    assert [name for name in names() if name in curvature.names()] == CURVATURES
    assert "identity" not in names(), "that is grad_dot"
    for name in CURVATURES:
        method = get(name)
        assert isinstance(method, Method)
        assert (method.name, method.unit) == (name, "nats")


def test_options_are_shared_out() -> None:
    assert get("fisher", joint=True, mode="stored") == Influence(Fisher(joint=True), mode="stored")
    assert get("cg", damping=0.5, tolerance=1e-3) == Influence(CG(damping=0.5, tolerance=1e-3))
    assert get("datainf", mode="exact") == Influence(DataInf(), mode="exact")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ekfac", {"basis_labels": "resmapled"}, "ekfac: basis_labels is 'resmapled', expected one of true, sampled, resampled"),
        ("kfac", {"labels": "drawn"}, "kfac: labels is 'drawn', expected one of true, sampled, resampled"),
        ("fisher", {"jiont": True}, r"fisher: .*'jiont'.*Its options: damping='0.1 \* mean_eigenvalue', joint=False, mode='stored'"),
        ("lissa", {"scale": 1e4}, r"lissa: .*'scale'.*batch_rows=None, repeats=1, seed=0, mode='stored'"),
        ("fisher", {"mode": "sketched"}, "fisher: mode is 'sketched', expected one of stored, model, exact"),
        ("fisher", {"damping": "0.1 * trace"}, r"damping is '0.1 \* trace', expected a number above 0"),
        ("datainf", {"damping": 0.0}, "damping is 0.0, expected a number above 0"),
        ("nystrom", {"rank": 0}, "nystrom: rank is 0, expected 1 or more"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        get(name, **options)


def test_the_table_says_what_each_needs_and_costs() -> None:
    lines = {line["name"]: line for line in table()}
    for name in CURVATURES:
        line = lines[name]
        assert line["unit"] == "nats"
        assert "gradient" in line["needs"]
        assert line["summary"].startswith("influence: ")
        assert line["cost"]
        assert line["reference"]
    json.dumps(table())
    assert [line["name"] for line in curvature.table()] == curvature.names()
    assert all(line["cost"] and line["reference"] and line["damping"] for line in curvature.table())


def test_a_name_is_taken_once() -> None:
    class Other:
        name = "fisher"

    with pytest.raises(UsageError, match=r"'fisher' is registered already \(headwater\.methods\.by_curvature\.InfluenceBy\('fisher'\)\)"):
        register(Other)


def test_the_scores_are_the_formula() -> None:
    """`-(1/N) h_q' (C + lambda)^-1 g_n`, with the joint Fisher matrix as a dense matrix in float64."""
    method = get("fisher", joint=True, damping=0.3)
    scores = method.score(method.fit(TRAIN), TRAIN, QUERIES)
    rows_ND, queries_QD = (side.take("gradient", range(len(side))).double() for side in (TRAIN, QUERIES))
    matrix_DD = rows_ND.T @ rows_ND / len(rows_ND) + 0.3 * torch.eye(rows_ND.shape[1])
    expected_QN = -queries_QD @ torch.linalg.solve(matrix_DD, rows_ND.T) / len(rows_ND)
    np.testing.assert_allclose(scores.values_QN, expected_QN.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "sizes"), [(Influence(Fisher()), [1, 1, 1, 1]), (Influence(CG()), [3, 1])], ids=["closed", "in steps"])
def test_more_queries_are_solved_together_where_they_share_the_passes_of_steps(
    method: Influence, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, state = list[int](), method.fit(TRAIN)
    expected = method.score(state, TRAIN, QUERIES)
    monkeypatch.setattr(influence, "CHUNK_BYTES", 4 * TRAIN.layout.size)
    monkeypatch.setattr(influence, "CHUNK_BYTES_IN_STEPS", 3 * 4 * TRAIN.layout.size)
    solve = type(method.curvature).solve
    monkeypatch.setattr(type(method.curvature), "solve", lambda *args: [found.append(len(args[-1])), solve(*args)][1])
    np.testing.assert_allclose(method.score(state, TRAIN, QUERIES).values_QN, expected.values_QN, rtol=1e-4, atol=1e-6)
    assert found == sizes


def test_the_provenance_says_how_the_solves_ended() -> None:
    scores = [get(name).score(get(name).fit(TRAIN), TRAIN, QUERIES) for name in ("cg", "lissa", "lissa_released")]
    cg, lissa, released = (dict(one.provenance["solve"]) for one in scores)
    assert (cg["status"], cg["residual_of"]) == ("converged", "fisher")
    assert cg["residual_largest"] <= CG().tolerance
    assert lissa["residual_largest"] <= LiSSA().tolerance
    assert lissa["scale"] > 0
    assert lissa["decay"] > 1, "it converged, so there were steps enough for damping and the least eigenvalue together"
    assert released["residual_largest"] > 0.1
    assert released["cosine_to_gradient"] > 0.999, "the gradient product under another name"
    assert cg["cosine_to_gradient"] < 0.999
    damping = scores[0].provenance["damping"]
    assert damping["rule"] == "0.1 * mean_eigenvalue"
    assert 0 < damping["least"] <= damping["largest"]
    json.dumps([dict(one.provenance) for one in scores], allow_nan=False)


def test_a_curvature_that_is_registered_is_a_method_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "_curvatures", dict(curvature._curvatures))

    @dataclass(frozen=True)
    class Third(Fisher):
        name = "third_curvature"

    assert curvature.register(Third) is Third
    assert curvature.register(Third) is Third, "a module that is imported twice is no second curvature"
    assert "third_curvature" in names()
    assert get("third_curvature", joint=True) == Influence(Third(joint=True))
    assert {line["name"] for line in table()} >= {"third_curvature"}

    @dataclass(frozen=True)
    class Taken(Fisher):
        name = "cg"

    with pytest.raises(UsageError, match=r"a curvature named 'cg' is registered already \(headwater\.curvature\.cg\.CG\)"):
        curvature.register(Taken)
