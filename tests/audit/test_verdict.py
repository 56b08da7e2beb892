"""The verdict: fitted to the evidence there is, judged on tasks it has not seen, and silent where nothing bears on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from headwater.audit.calibration import BINS, RIDGE, Calibration, Judged, auroc, fit_logistic, shipped
from headwater.audit.evidence import EVIDENCE
from headwater.audit.subject import Subject
from headwater.audit.verdict import DECIDING, judged, removed, verdicts

TASKS = ("a", "b", "c", "d")


def records(*, n: int = 80, seed: int = 0, strength: float = 2.0) -> list[dict[str, Any]]:
    """`learned` tells true causes from others, `lexical` says nothing, `randomised` was never measured."""
    rng = np.random.default_rng(seed)
    made = []
    for m in range(n):
        caused = bool(rng.random() < 0.5)
        learned = float(np.sinh(rng.normal() + strength * (1 if caused else -1)))
        evidence = {"learned": learned, "lexical": float(rng.random()), "randomised": None}
        made.append({"task": TASKS[m % 4], "caused": caused, "evidence": evidence})
    return made


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.of(records(), "grad_cos", 0.1)


def test_the_fit_is_that_of_ridge_logistic_regression():
    rng = np.random.default_rng(0)
    x_MF = rng.normal(size=(60, 3)) * [1, 5, 0.1] + [0, 2, -1]
    caused_M = rng.random(60) < 1 / (1 + np.exp(-x_MF[:, 0] - 0.3 * x_MF[:, 1]))
    fit = fit_logistic(x_MF, caused_M, ("learned", "lexical", "repsim"))
    z_MF = (x_MF - x_MF.mean(0)) / x_MF.std(0)
    plain = LogisticRegression(C=1 / RIDGE, tol=1e-10).fit(z_MF, caused_M)
    np.testing.assert_allclose(fit.weights_F, plain.coef_[0], atol=1e-4)
    np.testing.assert_allclose(fit.probability(x_MF), plain.predict_proba(z_MF)[:, 1], atol=1e-4)
    np.testing.assert_allclose(fit.contributions(x_MF).sum(1) + fit.intercept, plain.decision_function(z_MF), atol=1e-3)


def test_auroc_counts_ties_half():
    rng = np.random.default_rng(1)
    values, positive = np.round(rng.normal(size=50), 1), rng.random(50) < 0.4
    assert auroc(values, positive) == pytest.approx(roc_auc_score(positive, values))
    assert np.isnan(auroc(values, np.ones(50, dtype=bool)))


def test_a_record_is_judged_by_fits_that_have_not_seen_its_task(calibration: Calibration):
    found = calibration.left_out(["learned"])
    assert np.bincount(found.record_J, minlength=80).tolist() == [3] * 80  # of the 6 pairs of tasks, 3 are without its own
    own = calibration.task_M == "a"
    wrong = Calibration(
        calibration.evidence, calibration.method, 0.1, np.where(own, ~calibration.caused_M, calibration.caused_M), calibration.task_M
    )
    of_a = own[found.record_J]
    with_b_and_c = Calibration(wrong.evidence, wrong.method, 0.1, wrong.caused_M, wrong.task_M).left_out(["learned"])
    np.testing.assert_array_equal(found.probability_J[of_a], with_b_and_c.probability_J[of_a])  # a's own labels change nothing about a


def test_calibration_error_is_the_distance_of_what_was_said_from_what_came():
    said = np.repeat([0.05, 0.95], 20)
    came = np.concatenate([np.arange(20) < 1, np.arange(20) < 19])
    right = Judged(np.arange(40), said, came)
    assert right.expected_calibration_error == pytest.approx(0)
    too_sure = Judged(np.arange(40), np.where(said < 0.5, 0.0, 1.0), np.arange(40) % 2 == 0)
    assert too_sure.expected_calibration_error == pytest.approx(0.5)
    assert sum(one["n"] for one in too_sure.bins()) == 40
    assert len(too_sure.bins()) <= BINS


def test_clear_evidence_is_said_and_the_findings_that_decided_it_are_named(calibration: Calibration):
    good, bad = (judged("q", {"learned": value, "lexical": 0.5}, calibration) for value in (20.0, -20.0))
    assert (good.status, bad.status) == ("supported", "contradicted")
    assert good.probability is not None
    assert bad.probability is not None
    assert good.probability > 0.9 > 0.1 > bad.probability
    assert 1 <= len(good.findings) <= DECIDING
    assert good.findings[0].name == "verdict: learned"
    assert "20 nats further than" in good.findings[0].because
    assert "20 nats less far than" in bad.findings[0].because
    assert (good.findings[0].status, bad.findings[0].status) == ("ok", "warn")


def test_nothing_that_bears_on_it_is_unknown(calibration: Calibration):
    nothing = judged("q", {}, calibration)
    worthless = judged("q", {"lexical": 0.9}, calibration)
    not_calibrated = judged("q", {"randomised": 0.1}, calibration)
    assert {one.status for one in (nothing, worthless, not_calibrated)} == {"unknown"}
    assert nothing.probability is None
    assert "AUROC" in worthless.findings[0].because
    assert worthless.findings[0].next_step


def test_evidence_beyond_what_was_calibrated_counts_no_more_than_the_furthest_that_was(calibration: Calibration):
    furthest = float(np.max(calibration.evidence["learned"]))
    at, beyond = (judged("q", {"learned": value}, calibration).probability for value in (furthest, 1e9))
    assert at == beyond


@pytest.mark.parametrize(
    ("effect", "noise", "status"),
    [(2.5, 1.0, "supported"), (-2.5, 1.0, "contradicted"), (0.3, 0.1, "contradicted"), (1.9, 1.0, "unknown"), (0.3, 1.0, "unknown")],
)
def test_removal_decides_alone_and_says_nothing_below_twice_its_noise(effect: float, noise: float, status: str):
    verdict = removed("q", {"removal": effect, "removal_error": noise, "learned": -50.0})
    assert verdict is not None
    assert verdict.status == status
    assert "trained again" in verdict.findings[0].because


def test_without_a_removal_the_other_evidence_decides():
    assert removed("q", {"learned": 3.0}) is None
    assert removed("q", {"removal": 3.0}) is None  # too few seeds to know its noise


def test_a_group_of_a_larger_share_of_the_rows_than_was_calibrated_is_unknown(subject: Subject, calibration: Calibration):
    """5 of 48 rows: among groups of a tenth it is judged, among groups of a hundredth nothing is known of it."""
    evidence = {"learned": np.full(len(subject.asked.queries), 20.0), "lexical": np.full(len(subject.asked.queries), 0.5)}
    small = Calibration(calibration.evidence, "grad_cos", 0.01, calibration.caused_M, calibration.task_M)
    assert {one.status for one in verdicts(subject, evidence, calibration)} == {"supported"}
    unknown = verdicts(subject, evidence, small)
    assert {one.status for one in unknown} == {"unknown"}
    assert "10%" in unknown[0].findings[0].because


def test_of_another_methods_trace_only_what_is_not_on_the_scale_of_its_scores_counts(calibration: Calibration):
    assert calibration.usable(["learned", "lexical"], "grad_cos") == ("learned", "lexical")
    assert calibration.usable(["learned", "lexical"], "repsim") == ("learned",)
    assert judged("q", {"lexical": 0.9}, calibration, method="repsim").status == "unknown"


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("value", [-3.0, 0.0, 0.4, 12.0])
def test_every_piece_of_evidence_has_words(name: str, value: float):
    words = EVIDENCE[name].words(value)
    assert len(words) > 20
    assert "nan" not in words
    assert np.isfinite(EVIDENCE[name].scale(np.array([value]))).all()


def test_the_shipped_records_are_of_at_least_four_tasks_and_300_queries():
    known = shipped()
    assert len(known.tasks) >= 4
    assert len(known.caused_M) >= 300
    assert 0.1 < known.caused_M.mean() < 0.9
