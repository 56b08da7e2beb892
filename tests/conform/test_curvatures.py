"""Every registered curvature through every check of the public conformance suite."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from headwater import curvature
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.model.session import Session
from headwater.testing import check_curvature, curvature_checks
from headwater.types import Source, UsageError
from tests.exact.models import make_batch, make_session
from tests.exact.sources import SoftmaxSource
from tests.exact.test_live_source import examples_of

OPTIONS: dict[str, dict[str, Any]] = {
    "lissa": {"damping": "mean_eigenvalue", "tolerance": 1e-7},  # so that it comes close in a few steps
    "ekfac_cg": {"tolerance": 1e-7, "max_steps": 200},
}
KNOWN = {
    "lissa_released": {
        "huge_damping": "the released recursion adds the damping where it should take it away",
        "scaled_rows": "the released recursion divides by 1000 whatever the rows are",
    }
}
CHECKS = [(name, id) for name in curvature.names() for id, _ in curvature_checks(curvature.get(name))]


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=[f"{name}-{check}" for name, check in CHECKS])
def test_curvature(name: str, check: str) -> None:
    with pytest.raises(AssertionError) if check in KNOWN.get(name, {}) else nullcontext():
        dict(curvature_checks(curvature.get(name, **OPTIONS.get(name, {}))))[check]()


@pytest.mark.parametrize(
    "options",
    [{"name": "fisher", "joint": True}, {"name": "lissa", "damping": 3.0, "tolerance": 1e-7}, {"name": "kfac", "damping": 0.2}],
    ids=str,
)
def test_curvature_with_options(options: dict[str, Any]) -> None:
    assert {outcome.status for outcome in check_curvature(curvature.get(**options))} == {"passed"}


def softmax_rows(positions: Sequence[int]) -> Source:
    return SoftmaxSource.drawn(12, seed=0).rows_at(positions)


@pytest.mark.parametrize("name", curvature.names())
def test_curvature_of_a_live_model(name: str) -> None:
    """A source factory of one's own: here of a softmax regression, whose Gauss-Newton operator and sampled rows are there."""
    known = {id: reason for id, reason in KNOWN.get(name, {}).items() if id == "huge_damping"}
    if name == "arnoldi":
        known["huge_damping"] = "a softmax does not see the sum of its inputs: what lies in that direction is dropped"
    chosen = curvature.get(name, **OPTIONS.get(name, {}))
    outcomes = check_curvature(chosen, source=softmax_rows, n_rows=12, known_failures=known)
    assert "residual_is_true" not in {outcome.id for outcome in outcomes}, "checks that edit rows are for the toy's"
    assert len(outcomes) == 15


@functools.cache
def tiny_session() -> Session:
    return make_session("llama")


def tiny_rows(positions: Sequence[int], include: Sequence[str]) -> Source:
    """Rows of a real model, by passes: labels are drawn by a row's id, so that they go with it wherever it stands."""
    session = tiny_session()
    examples = examples_of(make_batch(session, lengths=(6, 4, 5, 4)))
    layout = make_layout(session.model, find_scope(session.model, include=include), SketchSpec(rank=None))
    return LiveSource(session, [examples[i] for i in positions], layout)


MATRICES, VECTORS = ("*1*k_proj*", "*1*v_proj*", "*1*norm*"), ("*v_proj.bias",)
OF_A_MODEL: list[tuple[dict[str, Any], Sequence[str]]] = [
    ({"name": "kfac", "labels": "true"}, MATRICES),
    ({"name": "ekfac", "precision": "float32"}, MATRICES),
    ({"name": "ggn", "damping": 0.1}, VECTORS),
    ({"name": "ekfac_cg", "damping": "mean_eigenvalue", "tolerance": 1e-7, "max_steps": 60}, VECTORS),
]


@pytest.mark.parametrize(("options", "include"), OF_A_MODEL, ids=[options["name"] for options, _ in OF_A_MODEL])
def test_curvature_of_a_language_model(options: dict[str, Any], include: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.gradient.live.give_back_memory", lambda: None)  # a second for each pass over four rows
    outcomes = check_curvature(curvature.get(**options), source=functools.partial(tiny_rows, include=include), n_rows=4)
    assert {outcome.status for outcome in outcomes} == {"passed"}
    assert len(outcomes) == 15


def test_known_failures_are_for_checks_that_there_are() -> None:
    with pytest.raises(UsageError, match="no_such_check"):
        check_curvature(curvature.get("identity"), known_failures={"no_such_check": "because"})


def test_the_suite_reads_no_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for id, check in curvature_checks(curvature.get("nystrom")):
        if id != "determinism":  # that one reseeds it, to see
            check()
    assert torch.equal(torch.rand(1), expected)
