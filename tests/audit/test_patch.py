"""A few steps on the named rows: they move the answers they taught, the model is left as it was, and random rows are the control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.audit.controls import Controls, scores_under, shuffled_session
from headwater.audit.patch import Patch
from headwater.audit.subject import Subject
from headwater.truth.design import Designs
from headwater.truth.tail_patch import Patch as Steps
from headwater.truth.tail_patch import changes, tail_patch
from headwater.types import Scores
from tests.audit_world import THINGS, TRAINING, AuditWorld

QUICK = Patch(draws=4)


def findings(report):
    return {finding.name: finding for finding in report.findings}


@pytest.fixture(scope="module")
def world_subject(audit_world: AuditWorld) -> Subject:
    return audit_world.subject(training=TRAINING.model_dump())


def with_values(subject: Subject, of: Callable[[Scores], np.ndarray]) -> Subject:
    """The same trace, had the primary method said something else."""
    name = subject.asked.primary
    scores = replace(subject.scores, values_QN=of(subject.scores))
    return replace(subject, trace=replace(subject.asked, scores={**subject.asked.scores, name: scores}))


def true_causes(subject: Subject) -> np.ndarray:
    """[Q, N] 1 for the rows about the thing that is asked about."""
    texts = [row.prompt for row in subject.rows]
    return np.array([[float(f" {query.id} " in text) for text in texts] for query in subject.asked.queries])


def test_true_causes_move_their_answers_further_than_random_rows(world_subject: Subject):
    report = QUICK(with_values(world_subject, lambda scores: true_causes(world_subject)))
    found = findings(report)
    assert found["patch: learned"].status == "ok"
    assert found["patch: learned"].n == len(THINGS)
    assert (report.evidence["learned"] > 0).mean() > 0.7
    assert report.evidence["moved"].mean() > 1  # training taught the answers
    assert set(report.evidence) == {"learned", "needed", "unlearned", "moved"}
    (plot,) = report.plots
    assert tuple(plot.series[0].x) == ("named", "lexical", "repsim", "random")


def test_rows_that_taught_something_else_fail(world_subject: Subject):
    """Of each query the rows about another thing, whose answer is another colour."""
    others = np.roll(true_causes(world_subject), 1, axis=0)
    found = findings(QUICK(with_values(world_subject, lambda scores: others)))
    assert found["patch: learned"].status == "fail"
    assert found["patch: learned"].next_step
    assert found["patch: against lexical"].status == "warn"


def test_the_numbers_are_those_of_plain_tail_patches(world_subject: Subject):
    subject, lr = world_subject, 1e-3
    effects = Patch(draws=2)._effects(subject, subject.session, Steps(lr, 2, "adamw", "up"), {"named": subject.group_QK})
    q, n_rows = 3, len(subject.rows)
    kept_DN = np.zeros((3, n_rows), dtype=bool)
    for kept_N, group in zip(kept_DN, [subject.group_QK[q], *subject.random_groups(2)], strict=True):
        kept_N[group] = True
    sets = Designs(("own", "r0", "r1"), kept_DN)
    plain = -changes(tail_patch(subject.session, subject.rows, [subject.asked.queries[q]], Steps(lr, 2, "adamw", "up"), sets=sets))[:, 0]
    np.testing.assert_allclose(effects.of["named"][q], plain[0], rtol=1e-4)
    np.testing.assert_allclose(effects.random_RQ[:, q], plain[1:], rtol=1e-4)


def test_the_models_are_left_as_they_were(world_subject: Subject):
    before = [session.fingerprint for session in (world_subject.session, world_subject.base_session)]
    QUICK(world_subject)
    assert [session.fingerprint for session in (world_subject.session, world_subject.base_session)] == before
    assert all(parameter.requires_grad for parameter in world_subject.session.model.parameters())


def test_without_the_model_before_training_the_half_that_can_be_measured_is(world_subject: Subject):
    report = QUICK(replace(world_subject, base=None))
    found = findings(report)
    assert found["patch: learned"].status == "unknown"
    assert "--base" in (found["patch: learned"].next_step or "")
    assert set(report.evidence) == {"unlearned"}
    assert QUICK.passes(replace(world_subject, base=None)) < QUICK.passes(world_subject)


# ------------------------------------------------------------------------------------------------------------ controls


def test_a_healthy_trace_passes_the_controls(world_subject: Subject):
    report = Controls()(world_subject)
    found = findings(report)
    assert {name for name, finding in found.items() if finding.status == "fail"} <= {"controls: lexical"}  # a world of few words
    assert found["controls: random"].status == "ok"
    assert found["controls: embedding"].status == "unknown"
    assert {values_Q.shape for values_Q in report.evidence.values()} == {(len(THINGS),)}


def test_a_text_search_that_names_the_same_rows_fails(world_subject: Subject):
    lexical = world_subject.asked.scores["lexical"].values_QN
    found = findings(Controls()(with_values(world_subject, lambda scores: lexical * 0.5)))
    assert found["controls: lexical"].status == "fail"
    assert found["controls: lexical"].value == 1.0


def test_one_query_says_nothing_of_the_controls_and_leaves_no_nan_behind(world_subject: Subject):
    """The lexical scores themselves, so that with more queries the control would fail."""
    name = world_subject.asked.primary
    lexical = world_subject.asked.scores["lexical"]
    cut = {key: replace(one, values_QN=one.values_QN[:1], query_ids=one.query_ids[:1]) for key, one in world_subject.asked.scores.items()}
    cut[name] = replace(cut[name], values_QN=lexical.values_QN[:1] * 0.5)
    alone = replace(world_subject, trace=replace(world_subject.asked, scores=cut, queries=world_subject.asked.queries[:1]))
    report = Controls()(alone)
    assert {finding.status for finding in report.findings} == {"unknown"}
    assert findings(report)["controls: lexical"].value == 1.0
    assert all(finding.next_step for finding in report.findings)


@pytest.mark.parametrize("name", ["length", "loss"])
def test_a_score_that_is_little_more_than_a_size_fails(name: str, world_subject: Subject):
    size = world_subject.asked.scores[name].values_QN
    noise = np.random.default_rng(0).normal(size=size.shape) * size.std() * 1e-3
    for sign in (1, -1):
        found = findings(Controls()(with_values(world_subject, lambda scores, sign=sign: sign * size + noise)))
        assert found[f"controls: {name}"].status == "fail"


def test_a_ranking_that_survives_shuffled_weights_fails(world_subject: Subject):
    shuffled = scores_under(world_subject, shuffled_session(world_subject.session, seed=world_subject.seed)).values_QN
    found = findings(Controls()(with_values(world_subject, lambda scores: shuffled)))
    assert found["controls: randomised"].status == "fail"
    assert found["controls: randomised"].value == pytest.approx(1.0)


def test_shuffling_keeps_the_numbers_of_each_tensor_and_nothing_else(world_subject: Subject):
    session = world_subject.session
    shuffled = shuffled_session(session, seed=3)
    for (name, before), (_, after) in zip(session.model.named_parameters(), shuffled.model.named_parameters(), strict=True):
        torch.testing.assert_close(before.flatten().sort().values, after.flatten().sort().values, rtol=0, atol=0)
        assert before.numel() < 100 or not torch.equal(before, after), name
    assert session.fingerprint == world_subject.index.spec.facts["model"]  # type: ignore[union-attr]


def test_scores_of_the_same_weights_are_the_trace(world_subject: Subject):
    again = scores_under(world_subject, world_subject.session)
    np.testing.assert_allclose(again.values_QN, world_subject.scores.values_QN, atol=2e-2)  # the stored rows are bfloat16
