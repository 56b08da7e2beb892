"""Each doubt is planted and has to be found; where nothing is planted, none is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.unit.test_evaluate_lds import world

from headwater.evaluate import doubts
from headwater.evaluate.classes import ClassLabels
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.summary import evaluate
from headwater.types import DataError, Finding, Scores, Truth, UsageError

N, Q, C = 120, 30, 4
TRAIN, QUERY = np.arange(N) * C // N, np.arange(Q) % C
LABELS = ClassLabels(TRAIN.astype(str), QUERY.astype(str))


def class_scores(*, strength: float = 1.0, seed: int = 0) -> Scores:
    """Rows of the query's class score higher; some rows are hubs."""
    rng = np.random.default_rng(seed)
    values_QN = rng.standard_normal((Q, N)) + strength * (QUERY[:, None] == TRAIN[None]) + rng.standard_normal(N)
    return Scores(values_QN, tuple(f"q{q}" for q in range(Q)), tuple(f"r{n}" for n in range(N)), "m", None)


def found(scores: Scores, labels: ClassLabels | None = LABELS, truth: Truth | None = None) -> dict[str, Finding]:
    return {finding.name: finding for finding in evaluate(scores, labels=labels, truth=truth).findings}


def status(scores: Scores, name: str, labels: ClassLabels = LABELS) -> str:
    return found(scores, labels)[name].status


def changed(scores: Scores, values_QN: np.ndarray) -> Scores:
    return replace(scores, values_QN=values_QN)


def test_nothing_is_doubtful_about_scores_that_fit() -> None:
    assert {finding.status for finding in found(class_scores()).values()} == {"ok"}


def test_scores_that_know_nothing_are_unknown_and_not_accused() -> None:
    for seed in range(10):
        statuses = {name: one.status for name, one in found(class_scores(strength=0.0, seed=seed)).items()}
        assert statuses["row order"] == "unknown"
        assert statuses["label order"] in ("unknown", "ok")
        assert statuses["label leak"] == "ok"


def test_ties_at_the_first_place_or_at_the_kth() -> None:
    scores = class_scores()
    values_QN = scores.values_QN.copy()
    values_QN[0, 5] = values_QN[0].max()
    tie = doubts.ties(Ranking(values_QN), 30)
    assert (tie.status, tie.value) == ("warn", pytest.approx(1 / Q))
    assert doubts.ties(Ranking(np.round(values_QN)), 30).value == 1
    assert doubts.ties(Ranking(scores.values_QN), N).status == "ok"


def test_nan_and_constant_rows() -> None:
    scores = class_scores()
    values_QN = scores.values_QN.copy()
    values_QN[:, 3] = np.nan
    assert status(changed(scores, values_QN), "missing scores") == "warn"
    values_QN[1], values_QN[2] = np.nan, 0.25
    result = found(changed(scores, values_QN))
    assert (result["missing scores"].status, result["constant scores"].status) == ("fail", "fail")
    assert evaluate(changed(scores, values_QN), labels=LABELS).figures["accuracy"].n == Q - 2


def test_only_nan_is_a_finding_and_no_figure() -> None:
    result = evaluate(changed(class_scores(), np.full((Q, N), np.nan)), labels=LABELS)
    assert result.to_json()["accuracy"] is None
    assert {finding.name for finding in result.findings if finding.status == "fail"} == {"missing scores"}


def test_a_flipped_sign() -> None:
    scores = class_scores()
    assert status(changed(scores, -scores.values_QN), "sign") == "warn"
    ours, truth = world()
    assert found(changed(ours, -ours.values_QN), None, truth)["sign"].status == "warn"
    assert found(ours, None, truth)["sign"].status == "ok"


@pytest.mark.parametrize(
    ("order", "words"),
    [(np.roll(np.arange(N), 30), "shifted by"), (np.arange(N)[::-1], "reversed"), (np.roll(np.arange(N), 45), "shifted by")],
)
def test_rows_in_another_order_than_their_labels(order: np.ndarray, words: str) -> None:
    scores = class_scores()
    finding = found(changed(scores, scores.values_QN[:, order]))["row order"]
    assert finding.status == "fail"
    assert words in finding.because


def test_rows_in_another_order_than_the_bank() -> None:
    scores, truth = world(n_designs=80)
    assert found(scores, None, truth)["row order"].status == "ok"
    for order, words in ((np.roll(np.arange(40), 7), "shifted by 33"), (np.arange(40)[::-1], "reversed")):
        moved = changed(scores, scores.values_QN[:, order])
        finding = found(moved, None, truth)["row order"]
        assert finding.status == "fail"
        assert words in finding.because


def test_labels_that_are_shuffled_on_one_side() -> None:
    rng = np.random.default_rng(0)
    scores = class_scores(strength=2.0)
    train = found(scores, ClassLabels(rng.permutation(LABELS.train_N), LABELS.query_Q))["label order"]
    query = found(scores, ClassLabels(LABELS.train_N, rng.permutation(LABELS.query_Q)))["label order"]
    assert train.status == query.status == "warn"
    assert "those of training rows are not" in train.because
    assert "those of queries are not" in query.because


def test_a_score_that_is_a_function_of_the_label() -> None:
    scores = class_scores()
    leak = (QUERY[:, None] == TRAIN[None]).astype(float)
    assert status(changed(scores, leak), "label leak") == "fail"
    assert status(changed(scores, leak + 0.01 * scores.values_QN), "label leak") == "ok"


def test_a_class_that_no_training_row_has() -> None:
    query = LABELS.query_Q.copy().astype("<U5")
    query[0] = "other"
    finding = found(class_scores(), ClassLabels(LABELS.train_N, query))["classes"]
    assert (finding.status, finding.value) == ("warn", pytest.approx(1 / Q))
    assert "'other'" in finding.because


def test_what_is_missing_from_the_bank_and_how_it_was_matched() -> None:
    scores, truth = world()
    outcomes_DSQ = truth.outcomes_DSQ.copy()
    outcomes_DSQ[3, 0] = np.nan
    diverged_DS = np.zeros((40, 2), dtype=bool)
    diverged_DS[3, 0] = True
    result = found(scores, None, replace(truth, outcomes_DSQ=outcomes_DSQ, diverged_DS=diverged_DS))
    assert result["missing outcomes"].status == "warn"
    assert "(1 trainings diverged)" in result["missing outcomes"].because
    assert result["matching"].status == "ok"
    by_order = replace(scores, train_ids=tuple(map(str, range(40))), query_ids=tuple(map(str, range(6))))
    assert "by order" in found(by_order, None, truth)["matching"].because
    fewer = Scores(scores.values_QN[:4], scores.query_ids[:4], scores.train_ids, "m", None)
    assert found(fewer, None, truth)["matching"].status == "warn"


def test_tables_that_do_not_fit_together() -> None:
    scores = class_scores()
    with pytest.raises(UsageError, match="nothing to hold the scores against"):
        evaluate(scores)
    with pytest.raises(DataError, match="turned round"):
        evaluate(scores, labels=ClassLabels(LABELS.query_Q, LABELS.train_N))
    with pytest.raises(DataError, match="labels of 30 queries and 119 training rows, but scores of 30 and 120"):
        evaluate(scores, labels=ClassLabels(LABELS.train_N[:-1], LABELS.query_Q))
    with pytest.raises(DataError, match="Likely another column"):
        evaluate(scores, labels=ClassLabels(LABELS.train_N, np.array(["x"] * Q)))
    with pytest.raises(DataError, match="marks of 3 training rows"):
        evaluate(scores, wrong_N=np.array([True, False, True]))


def test_a_method_against_another_is_paired() -> None:
    ours, truth = world(noise=2.0)
    other = changed(ours, ours.values_QN + np.random.default_rng(0).standard_normal(ours.values_QN.shape))
    result = evaluate(ours, truth=truth, against=other)
    theirs = evaluate(other, truth=truth)
    for name in ("lds", "lds_pearson", "lds_slope"):
        assert result.differences[name].value == pytest.approx(result.figures[name].value - theirs.figures[name].value)
    assert evaluate(ours, truth=truth, against=ours).differences["top_k_overlap"].value == 1
    by_label = evaluate(class_scores(), labels=LABELS, against=class_scores(seed=1))
    assert set(by_label.differences) >= {"accuracy", "cover", "auroc", "top_k_overlap"}
    assert {"of", "name", "value", "low", "high"} <= set(by_label.to_pandas().columns)
