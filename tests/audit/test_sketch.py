"""Sketch: whole gradients cost nothing, a fair sketch little, and one of a few numbers is caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from headwater.audit.run import run_checks
from headwater.audit.sketch import Sketch, _overlap
from headwater.audit.subject import Subject
from headwater.types import Finding, Scores
from tests.audit_world import AuditWorld, make_world


def found(subject: Subject, **options: Any) -> dict[str, Finding]:
    return {finding.name.removeprefix("sketch: "): finding for finding in Sketch(**options)(subject).findings}


def test_a_healthy_world(subject: Subject) -> None:
    """One block of it is sketched: 320 x 16 embeddings as 16 x 16."""
    assert any(block.sketched for block in subject.stored.layout.blocks)
    one = found(subject)
    assert {name: finding.status for name, finding in one.items()} == {"standard error": "ok", "seeds": "ok"}
    assert 0 < (one["standard error"].value or 0) < 0.5
    assert one["standard error"].n == 5 * 8
    assert 0.7 <= (one["seeds"].value or 0) <= 1
    assert one["seeds"].n == 8
    assert "48 sampled rows of 48" in one["seeds"].because


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    return make_world(tmp_path_factory.mktemp("whole"), sketch__rank=None)


def test_gradients_kept_whole(whole: AuditWorld) -> None:
    one = found(whole.subject())
    assert {finding.status for finding in one.values()} == {"ok"}
    assert (one["seeds"].value, one["standard error"].value) == (1, 0)
    assert "kept whole" in one["seeds"].because


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    """One number is all that is kept of a gradient; and two further seeds of it."""
    scope = {"scope__include": ["model.layers.0.mlp.up_proj.weight"], "sketch__rank": 1, "sketch__whole_below": 0}
    return make_world(tmp_path_factory.mktemp("seeds"), **scope, members__roles=["seed"], members__sketch_seeds=[1, 2])


def test_a_sketch_of_one_number(seeds: AuditWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a sample, and by the run's members: both say so. Chance is a tenth, and rows about one thing stay together even so."""
    subject = seeds.subject()
    by_members = found(subject)["seeds"]
    assert by_members.status in ("warn", "fail")
    assert "seeds of the run's members" in by_members.because
    assert "larger sketch (--set sketch.rank=2, " in str(by_members.next_step)
    monkeypatch.setattr(subject.stored, "members", lambda role: ())
    on_a_sample = found(subject)["seeds"]
    assert on_a_sample.status in ("warn", "fail")
    assert "sampled rows" in on_a_sample.because


def test_a_list_that_another_seed_does_not_find(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the index holds is noise under its own seed; the rows sketched anew are not."""
    take, generator = subject.stored.take, torch.Generator().manual_seed(0)
    monkeypatch.setattr(subject.stored, "take", lambda feature, at: torch.randn(take(feature, at).shape, generator=generator))
    one = found(subject)["seeds"]
    assert one.status == "fail"
    assert "sketch.rank=32, " in str(one.next_step)
    assert one.interval is not None
    assert one.interval[1] < 0.5


def test_scores_that_drown_in_their_error(subject: Subject) -> None:
    errors = replace(subject.scores, standard_errors_QN=2 * np.abs(subject.scores.values_QN))
    asked = replace(subject.asked, scores={**subject.asked.scores, subject.asked.primary: errors})
    one = found(replace(subject, trace=asked))["standard error"]
    assert (one.status, one.value) == ("fail", pytest.approx(2))


def test_methods_without_gradients_have_no_sketch(subject: Subject) -> None:
    record = {**subject.asked.record, "primary": "repsim"}
    one = found(replace(subject, trace=replace(subject.asked, record=record)))
    assert {finding.status for finding in one.values()} == {"ok"}
    assert "reads no gradient" in one["seeds"].because


def test_a_method_without_errors(subject: Subject) -> None:
    scores = replace(subject.scores, provenance={})
    asked = replace(subject.asked, scores={**subject.asked.scores, subject.asked.primary: scores})
    assert found(replace(subject, trace=asked))["standard error"].status == "unknown"


def test_a_method_that_cannot_be_sketched_again(subject: Subject) -> None:
    record = {**subject.asked.record, "primary": "tracin", "recipe": {"k": 5, "methods": {"tracin": {}}}}
    scores = {**subject.asked.scores, "tracin": replace(subject.scores, method="tracin", provenance={})}
    one = found(replace(subject, trace=replace(subject.asked, record=record, scores=scores)))
    assert one["seeds"].status == "unknown"
    assert "--members seed" in str(one["seeds"].next_step)


def test_the_overlap_is_the_share_of_the_first_k() -> None:
    values_QN = np.array([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    one = Scores(values_QN, ("a", "b"), ("w", "x", "y", "z"), "m", None)
    other = replace(one, values_QN=np.array([[4.0, 1, 3, 2], [1, 2, 3, 4]]))
    assert _overlap([(one, other)], 2).value == pytest.approx(0.75)
    assert _overlap([(one, other), (one, one)], 2).value == pytest.approx(0.875)


def test_without_a_trace(subject: Subject) -> None:
    audit = run_checks(replace(subject, trace=None), [Sketch()])
    assert [finding.status for finding in audit.findings] == ["unknown"]
