"""A row that tops every query, as one did for 234 of 260 in the paper's own scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headwater.audit.hubs import Hubs
from headwater.audit.subject import Subject
from headwater.types import Scores


def with_scores(subject: Subject, values_QN: np.ndarray) -> Subject:
    scores = replace(subject.scores, values_QN=values_QN)
    asked = replace(subject.asked, scores={**subject.asked.scores, subject.asked.primary: scores})
    return replace(subject, trace=asked)


def test_a_healthy_trace_has_no_hub(subject: Subject):
    (finding,) = Hubs()(subject).findings
    assert finding.status == "ok"
    assert finding.n == 8


def test_a_row_that_tops_every_query_fails(subject: Subject):
    values_QN = subject.scores.values_QN.copy()
    values_QN[:, 7] = values_QN.max() + 1
    (finding,) = Hubs()(with_scores(subject, values_QN)).findings
    assert finding.status == "fail"
    assert finding.value == 1.0
    assert subject.scores.train_ids[7] in finding.because
    assert finding.interval is not None
    assert finding.interval[0] > 0.5


def test_two_queries_say_nothing_of_hubs(subject: Subject):
    scores: Scores = subject.scores
    two = replace(scores, values_QN=scores.values_QN[:2], query_ids=scores.query_ids[:2])
    few = replace(subject, trace=replace(subject.asked, scores={subject.asked.primary: two}))
    (finding,) = Hubs()(few).findings
    assert finding.status == "unknown"
