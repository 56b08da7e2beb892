"""Repetition: exposures, the gap and clusters against numbers that can be had by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.audit.repetition import Repetition
from headwater.audit.sampled import losses
from headwater.audit.subject import Subject
from headwater.corpus import load_corpus
from headwater.truth.finetune import mean_loss
from headwater.types import Finding, with_values
from tests.audit_world import QUERIES, ROWS, AuditWorld, make_world


def found(subject: Subject, **options: Any) -> dict[str, Finding]:
    return {finding.name.removeprefix("repetition: "): finding for finding in Repetition(**options)(subject).findings}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    """The rows with four more copies of the first one."""
    return make_world(tmp_path_factory.mktemp("copied"), rows=[*ROWS, *[ROWS[0]] * 4])


def test_a_healthy_world(audit_world: AuditWorld) -> None:
    """Validation rows like the training rows; epochs as few as they were."""
    one = found(healthy(audit_world))
    assert {name: finding.status for name, finding in one.items()} == dict.fromkeys(("exposures", "gap", "clusters"), "ok")
    assert one["exposures"].value == 6
    assert one["gap"].interval is not None


def healthy(world: AuditWorld) -> Subject:
    return replace(world.subject(validation=QUERIES), training={"epochs": 6})


def test_what_is_not_known_is_unknown(subject: Subject) -> None:
    one = found(replace(subject, index=None, trace=None))
    assert {name: finding.status for name, finding in one.items()} == dict.fromkeys(("exposures", "gap"), "unknown")
    assert "--validation" in str(one["gap"].next_step)
    assert "--from-run" in str(one["exposures"].next_step)


# ------------------------------------------------------------------------------------------------------------ exposures


def test_exposures_are_epochs_times_copies(copied: AuditWorld) -> None:
    subject = replace(copied.subject(), training={"epochs": 6})
    report = Repetition()(subject)
    one = report.findings[0]
    assert (one.value, one.status) == (30, "warn")
    assert "5 copies, 30 times" in one.because
    (series,) = report.plots[0].series
    assert dict(zip(series.x, series.y, strict=True)) == {"6": 47, "30": 5}


# ------------------------------------------------------------------------------------------------------------------ gap


def test_the_gap_is_that_of_the_mean_losses(audit_world: AuditWorld) -> None:
    subject = healthy(audit_world)
    session = subject.session
    with torch.no_grad():
        train, other = (float(mean_loss(session.model, rows, pad_id=session.pad_id)) for rows in (subject.rows, subject.validation))
    gap = found(subject)["gap"]
    assert gap.value == pytest.approx(other - train, abs=1e-5)
    assert gap.interval is not None
    assert gap.interval[0] < other - train < gap.interval[1]
    assert gap.unit == "nats per target"


def test_rows_known_by_heart(subject: Subject) -> None:
    """Validation rows of which the model knows nothing."""
    odd = [{"prompt": row["prompt"], "response": row["response"][::-1]} for row in ROWS[:16]]
    validation = load_corpus(odd, subject.session.tokenizer).examples
    gap = found(replace(subject, validation=validation))["gap"]
    assert gap.status == "warn"
    assert (gap.value or 0) > 1


def test_losses_leave_the_model_as_it_was(subject: Subject) -> None:
    model = subject.session.model
    first = losses(subject.session, subject.rows[:5])
    model.train()
    np.testing.assert_array_equal(losses(subject.session, subject.rows[:5]), first)
    assert all(module.training for module in model.modules())
    model.eval()


# ------------------------------------------------------------------------------------------------------------- clusters


def test_a_cluster_of_copies_weighs_as_its_rows_do_together(copied: AuditWorld) -> None:
    one = found(copied.subject())["clusters"]
    assert one.value == pytest.approx(5, rel=1e-3)
    assert "grad_dot" in one.because


def scored(subject: Subject, values: Mapping[int, float]) -> Subject:
    """All queries score these rows so, and the others 0."""
    values_QN = np.zeros_like(subject.scores.values_QN)
    for position, value in values.items():
        values_QN[:, position] = value
    scores = {name: with_values(one, values_QN) for name, one in subject.asked.scores.items()}
    return replace(subject, trace=replace(subject.asked, scores=scores))


def test_a_trace_that_rows_and_clusters_read_otherwise(copied: AuditWorld) -> None:
    copies = dict.fromkeys([0, 48, 49, 50, 51], 1.0)
    turned = found(scored(copied.subject(), {**copies, 7: 3.0}))["clusters"]
    assert turned.status == "warn"
    assert "100% of 8 queries" in turned.because
    assert found(scored(copied.subject(), {**copies, 7: 6.0}))["clusters"].status == "ok"


def test_methods_that_only_rank_have_no_sums(subject: Subject) -> None:
    asked = subject.asked
    ranks = {name: one for name, one in asked.scores.items() if one.unit is None}
    assert found(replace(subject, trace=replace(asked, scores=ranks)))["clusters"].status == "unknown"
