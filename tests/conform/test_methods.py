"""Every registered method through every check of the public conformance suite."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from headwater.methods import get, names
from headwater.progress import quiet
from headwater.testing import Case, check_method, method_checks, toy_queries, toy_rows
from tests.conform.encoder import save_tiny_encoder

GIVEN: dict[str, dict[str, Any]] = {
    "embedding": {"model": "given by the fixture"},  # what cannot be built without a file
    "fastif": {"share": 1.0},  # every row is a candidate: what it does not look at has no score
}
OF_THE_ROW = "it looks at the training row alone"
KNOWN = {"self_influence": dict.fromkeys(("nan_query", "zero_features", "scaled_measure", "sign"), OF_THE_ROW)}
CHECKS = [(name, id) for name in names() for id, _ in method_checks(get(name, **GIVEN.get(name, {})))]


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {**GIVEN, "embedding": {"model": save_tiny_encoder(tmp_path_factory.mktemp("encoder"))}}


@pytest.mark.parametrize(("name", "check"), CHECKS, ids=[f"{name}-{check}" for name, check in CHECKS])
def test_method(name: str, check: str, options: dict[str, dict[str, Any]]) -> None:
    expected = pytest.raises(AssertionError) if check in KNOWN.get(name, {}) else nullcontext()
    with quiet(), expected:
        dict(method_checks(get(name, **options.get(name, {}))))[check]()


OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "relatif-theta": ("relatif", {"kind": "theta"}, {}),
    "self_influence": ("self_influence", {"curvature": {"name": "fisher", "joint": True}}, KNOWN["self_influence"]),
    "tracin-batch": (
        "tracin",
        {"batch_size": 4},
        {"twice_the_corpus_halves_nats": "it counts visits, not a step over N"},
    ),
    "less-equal": ("less", {"weights": "equal"}, {}),
    "trak-number": ("trak", {"damping": 3.0}, {}),
    "trackstar-task": (
        "trackstar",
        {"task_share": 0.3},
        dict.fromkeys(("query_subset_equals_slice", "nan_query", "scaled_measure"), "the set of queries decides R"),
    ),
    "fastif-idf": ("fastif", {"k": 60, "by": "idf", "curvature": {"name": "fisher", "damping": 0.5}}, {}),
    "dda-grad_dot": ("dda", {"inner": "grad_dot"}, {}),
    "dda-influence": ("dda", {"inner": {"name": "fisher", "damping": 0.5}}, {}),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_method_with_options(case: str) -> None:
    name, options, known = OPTIONS[case]
    check_method(get(name, **options), known_failures=known)


def test_every_kind_of_check_is_run() -> None:
    """A gradient method in nats meets all of them; a control only those that concern it."""
    ids = {name: {id for id, _ in method_checks(get(name))} for name in ("grad_dot", "grad_cos", "random")}
    assert {"sign", "scaled_measure", "layout_mismatch_refused", "twice_the_corpus_halves_nats"} <= ids["grad_dot"]
    assert ids["grad_dot"] - ids["grad_cos"] == {"twice_the_corpus_halves_nats"}
    assert ids["random"] < ids["grad_cos"]


def test_rows_of_ones_own() -> None:
    index, queries = toy_rows(9, seed=7).index(), toy_queries(3, seed=8).index()
    assert {outcome.status for outcome in check_method(get("grad_cos"), index=index, queries=queries)} == {"passed"}
    case: Case = method_checks(get("grad_cos"), index=index, queries=queries)[0][1].args[0]
    assert case.train.ids == index.ids
    assert case.queries.gradient_of == "measure"
