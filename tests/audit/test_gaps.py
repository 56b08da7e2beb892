"""The five gaps of a run: its tables against plain ones, a broken estimator in its own gap, and where there is no table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.audit.gaps import Gaps, Study, without
from headwater.audit.run import run_checks
from headwater.audit.subject import Subject
from headwater.evaluate.gaps import STATIONS
from headwater.types import with_values
from tests.audit_world import TRAINING

SMALL = Gaps(removals=1, queries=2, damping=30.0, steps=100, tolerance=2e-2)


@pytest.fixture
def known(subject: Subject) -> Subject:
    """How the world was trained is known here."""
    return replace(subject, training=TRAINING.model_dump())


def test_the_table_adds_up_and_is_read(known: Subject) -> None:
    study = Study.of(known, SMALL)
    table = study.table()
    assert set(table.changes_DQ) == set(STATIONS)
    assert table.known_DQ.all()
    assert table.telescoping_error < 1e-10
    near, exact = table.changes_DQ["pbrf"], table.changes_DQ["exact"]
    np.testing.assert_allclose(exact, near, atol=0.15 * np.abs(near).max())
    report = SMALL(known)
    (finding,) = report.findings
    assert finding.name == "gaps"
    assert finding.status != "unknown"
    assert "Removed: the named rows of 1 queries" in finding.because
    assert len(report.plots) == 1


def test_a_removal_is_the_named_group(known: Subject) -> None:
    kept_RN = without(known, 2)
    for kept_N, group_K in zip(kept_RN, known.group_QK, strict=False):
        assert sorted(np.flatnonzero(~kept_N)) == sorted(group_K)


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"training": {}}, Gaps(), "How the model was trained is not known"),
        ({}, Gaps(parameters=10), "more than 10"),
        ({"base": None}, Gaps(), "model before training"),
    ],
)
def test_where_there_is_no_table_it_says_why(known: Subject, changes: dict, options: Gaps, said: str) -> None:
    (finding,) = run_checks(replace(known, **changes), [options]).findings
    assert finding.status == "unknown"
    assert said in finding.because
    assert finding.next_step


def test_a_trace_that_names_nothing_is_unknown(known: Subject) -> None:
    scores = with_values(known.scores, -np.ones_like(known.scores.values_QN))
    empty = replace(known, trace=replace(known.asked, scores={**known.asked.scores, known.asked.primary: scores}))
    (finding,) = SMALL(empty).findings
    assert finding.status == "unknown"
    assert "names no rows" in finding.because
