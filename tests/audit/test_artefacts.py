"""Artefacts: planted properties that influence follows, the statistics by hand, and that chance finds none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from headwater.audit.artefacts import Artefacts, artefact, as_numbers, word_overlap
from headwater.audit.run import run_checks
from headwater.audit.subject import Subject
from headwater.types import Finding, UsageError, with_values

Q, N = 6, 200


def named(findings: object, name: str) -> Finding:
    return next(finding for finding in findings if finding.name == f"artefacts: {name}")  # pyright: ignore


def with_scores(subject: Subject, values_QN: np.ndarray) -> Subject:
    asked = subject.asked
    return replace(subject, trace=replace(asked, scores={**asked.scores, asked.primary: with_values(subject.scores, values_QN)}))


# ------------------------------------------------------------------------------------------------------------ statistics


def test_the_figures_are_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    values_QN, feature_QN = rng.normal(size=(Q, N)), rng.normal(size=(Q, N))
    found = artefact(values_QN, feature_QN)
    np.testing.assert_allclose(found.follows_Q, [spearmanr(np.abs(v), f)[0] for v, f in zip(values_QN, feature_QN, strict=True)])
    order_N = np.argsort(values_QN[0])
    np.testing.assert_allclose(found.deciles_QT[0], feature_QN[0][order_N].reshape(10, -1).mean(1))
    assert found.enrichment_Q[0] == pytest.approx(feature_QN[0][order_N[-20:]].mean() - feature_QN[0].mean())


def test_a_u_has_its_coefficient() -> None:
    x_N = np.linspace(-1, 1, N)
    found = artefact(np.tile(x_N, (Q, 1)), np.tile(0.3 * x_N**2 + 0.1 * x_N + 2, (Q, 1)))
    np.testing.assert_allclose(found.curvature_Q, 0.3)
    assert found.p == pytest.approx(1 / 500)


def test_p_is_uniform_where_there_is_nothing() -> None:
    rng = np.random.default_rng(1)
    found = [artefact(rng.normal(size=(3, 60)), np.tile(rng.normal(size=60), (3, 1)), permutations=99, seed=s).p for s in range(150)]
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.1
    assert 0.4 <= np.mean(found) <= 0.6


def test_what_is_missing_or_constant_has_no_part() -> None:
    rng = np.random.default_rng(2)
    values_QN, feature_QN = rng.normal(size=(3, N)), rng.normal(size=(3, N))
    values_QN[0, :5], feature_QN[1, 7], feature_QN[2] = np.nan, np.nan, 1.0
    found = artefact(values_QN, feature_QN)
    assert found.follows_Q[0] == pytest.approx(spearmanr(np.abs(values_QN[0, 5:]), feature_QN[0, 5:])[0])
    assert np.isnan(found.follows_Q[2])
    assert np.isfinite(found.p)
    assert not artefact(values_QN, np.ones((3, N))).measured


def test_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="the same"):
        artefact(np.ones((2, 30)), np.ones((3, 30)))


# --------------------------------------------------------------------------------------------------------------- the check


def test_every_property_has_a_finding_and_none_fails(subject: Subject) -> None:
    report = Artefacts()(subject)
    names = [finding.name.removeprefix("artefacts: ") for finding in report.findings]
    assert names == ["length", "overlap", "loss", "copies"]
    assert {finding.status for finding in report.findings} <= {"ok", "warn"}
    assert named(report.findings, "copies").status == "ok"
    (plot,) = report.plots
    assert [series.name for series in plot.series] == ["length", "overlap", "loss"]


def test_scores_that_are_noise_follow_nothing(subject: Subject) -> None:
    noise_QN = np.random.default_rng(0).normal(size=subject.scores.values_QN.shape)
    assert {finding.status for finding in Artefacts()(with_scores(subject, noise_QN)).findings} == {"ok"}


def test_a_column_that_influence_follows_is_found(subject: Subject) -> None:
    rng = np.random.default_rng(3)
    n_rows = len(subject.rows)
    days_N = np.datetime64("2024-01-01") + rng.permutation(n_rows).astype("timedelta64[D]")
    size_N = 1 + np.argsort(np.argsort(days_N)) / n_rows
    values_QN = size_N * rng.choice([-1, 1], size=subject.scores.values_QN.shape) + 0.02 * rng.normal(size=subject.scores.values_QN.shape)
    planted = replace(with_scores(subject, values_QN), features={"date": days_N, "dice": rng.normal(size=n_rows)})
    findings = Artefacts()(planted).findings
    assert named(findings, "date").status == "warn"
    assert named(findings, "date").next_step
    assert [finding.name for finding in findings if finding.status != "ok"] == ["artefacts: date"]


def test_word_overlap_by_hand(subject: Subject) -> None:
    found_QN = word_overlap(subject)
    words = {"what", "colour", "is", "car", "number", "0", "the", "red"}
    assert subject.rows[0].prompt == "what colour is car number 0?"
    assert found_QN[0, 0] == pytest.approx((len(words) - 1) / len(words))  # the query says 9
    assert found_QN.shape == (len(subject.asked.queries), len(subject.rows))


def test_columns_of_another_length_or_kind_are_refused() -> None:
    with pytest.raises(UsageError, match="a value for each of the 5 rows"):
        as_numbers("date", np.ones(4), 5)
    with pytest.raises(UsageError, match="expected numbers or dates"):
        as_numbers("date", np.array(["a"] * 5), 5)
    assert np.isnan(as_numbers("date", np.array(["2024-01-01", "NaT"], dtype="datetime64[D]"), 2)[1])


def test_too_few_rows_are_unknown_and_so_is_no_trace(subject: Subject) -> None:
    assert [finding.status for finding in run_checks(replace(subject, trace=None), [Artefacts()]).findings] == ["unknown"]
