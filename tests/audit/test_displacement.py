"""Displacement: distances against closed forms, the projection against finite differences, and the weights back where they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from headwater.audit.displacement import Displacement, Move, along_checkpoints, distance, randomly, slope, walk
from headwater.audit.run import run_checks
from headwater.audit.subject import Subject
from headwater.model.session import Session
from headwater.truth.retrain import measured
from tests.audit_faults import learned_world, untrained_world
from tests.audit_world import AuditWorld


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    return learned_world(tmp_path_factory.mktemp("learned"))


@pytest.fixture
def subject(learned: AuditWorld) -> Subject:
    return learned.subject()


def double(subject: Subject) -> Subject:
    """In float64, but for what the network itself takes to float32 (its norms)."""
    subject.session.model.double()
    subject.base_session.model.double()
    return subject


def test_a_model_that_learned_the_queries_moved_along_them(subject: Subject) -> None:
    before = subject.session.fingerprint
    report = Displacement()(subject)
    assert [(finding.name, finding.status) for finding in report.findings] == [
        ("displacement: norm", "ok"),
        ("displacement: projection", "ok"),
    ]
    assert subject.session.fingerprint == before
    trained, base = (measured(one, subject.asked.measure, subject.asked.queries) for one in (subject.session, subject.base_session))
    np.testing.assert_allclose(report.evidence["moved"], trained - base, atol=1e-5)
    way, answers = report.plots
    assert way.series[0].y[0] == 0
    assert way.series[0].x == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert answers.series[0].y[0] == 0
    assert answers.series[0].y[-1] == 1


def test_training_that_did_nothing_is_no_cause(tmp_path: Path) -> None:
    report = Displacement()(untrained_world(tmp_path).subject())
    assert {finding.name: finding.status for finding in report.findings}["displacement: norm"] == "warn"
    assert "fail" not in {finding.status for finding in report.findings}


def test_a_change_along_another_direction_is_seen_though_its_norm_is_the_same(subject: Subject) -> None:
    """The norm cannot tell the training from its own numbers in another order; the projection does."""
    base, trained = dict(subject.base_session.model.named_parameters()), dict(subject.session.model.named_parameters())
    norm = Displacement()(subject).findings[0].value
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in trained.items():
            change = (parameter - base[name]).flatten()
            parameter.copy_(base[name] + change[torch.randperm(len(change), generator=generator)].view_as(parameter))
    found = Displacement()(subject).findings
    assert found[0].value == pytest.approx(norm, rel=1e-5)
    assert [finding.status for finding in found] == ["warn", "warn"]


def test_the_norm_is_that_of_the_difference(subject: Subject) -> None:
    flat = [torch.cat([p.detach().flatten() for p in one.model.parameters()]) for one in (subject.base_session, subject.session)]
    moved, base = distance(subject.base_session, subject.session)
    assert moved == pytest.approx(float((flat[1] - flat[0]).norm()), rel=1e-5)
    assert base == pytest.approx(float(flat[0].norm()), rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_first_order_is_the_derivative_along_the_way(subject: Subject, fraction: float) -> None:
    subject = double(subject)
    move, queries, measure = Move.between(subject.base_session, subject.session), subject.asked.queries, subject.asked.measure
    found, step = slope(move, queries, measure, fraction), 1e-3
    with move.moving() as go:
        values = []
        for side in (-1, 1):
            go(fraction + side * step)
            values.append(measured(subject.session, measure, queries))
    np.testing.assert_allclose(found.predicted_Q, (values[1] - values[0]) / (2 * step), rtol=2e-3)
    assert (np.abs(found.cosine_Q) <= 1).all()


def test_random_changes_have_the_norm_of_the_training_in_every_tensor(subject: Subject) -> None:
    move, seen = Move.between(subject.base_session, subject.session), []
    measure = replace(subject.asked.measure, fn=lambda outputs, batch: seen.append(distance(subject.base_session, subject.session)[0]) or
                      torch.zeros(len(batch)))  # fmt: skip
    assert (randomly(move, subject.asked.queries, measure, 2, 0) == 0).all()
    assert seen[0] == 0
    np.testing.assert_allclose(seen[-1], move.norm, rtol=1e-4)


def test_an_adapter_goes_from_its_zero_b(subject: Subject) -> None:
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    base = subject.base_session
    adapted = get_peft_model(subject.session.model, config)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    session = replace(subject.session, model=adapted.eval())
    move = Move.between(base, session)
    layers = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    products = [4.0 * b @ layers[name.replace("lora_B", "lora_A")] for name, b in layers.items() if "lora_B" in name]
    assert move.norm == pytest.approx(float(torch.cat([one.detach().flatten() for one in products]).norm()), rel=1e-5)
    queries, measure = subject.asked.queries, subject.asked.measure
    with adapted.disable_adapter():
        without = measured(session, measure, queries)
    path = walk(move, queries, measure, (0.0, 1.0), None)
    np.testing.assert_allclose(path.measure_FQ[0], without, atol=1e-5)
    np.testing.assert_allclose(path.measure_FQ[1], measured(session, measure, queries), atol=0)


def test_whatever_happens_the_weights_are_put_back(subject: Subject) -> None:
    before, move = subject.session.fingerprint, Move.between(subject.base_session, subject.session)
    measure = replace(subject.asked.measure, fn=lambda outputs, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        walk(move, subject.asked.queries, measure, (0.5,), None)
    assert subject.session.fingerprint == before


def test_another_architecture_is_no_base(subject: Subject) -> None:
    other: Session = learned_shape()
    report = Displacement()(replace(subject, base=lambda: other))
    assert [finding.status for finding in report.findings] == ["unknown", "unknown"]
    assert "no counterpart" in report.findings[0].because


def learned_shape() -> Session:
    from headwater.model.tiny import tiny_model

    network, tokenizer = tiny_model(0, texts=["another one"], vocab_size=280, hidden_size=8, intermediate_size=16, num_hidden_layers=1)
    return Session(network.eval(), tokenizer, "causal-lm", name="another")


def test_the_model_as_its_own_base_is_said(subject: Subject) -> None:
    report = Displacement()(replace(subject, base=lambda: subject.session))
    assert [finding.status for finding in report.findings] == ["warn", "unknown"]
    assert "--base" in (report.findings[1].next_step or "")


def test_one_query_has_no_interval(subject: Subject) -> None:
    assert [finding.status for finding in Displacement(queries=1)(subject).findings] == ["ok", "unknown"]


def test_without_a_base_it_is_unknown(learned: AuditWorld) -> None:
    (finding,) = run_checks(replace(learned.subject(), base=None), [Displacement()]).findings
    assert finding.status == "unknown"
    assert finding.next_step == "Name it: --base MODEL."


def test_a_run_without_checkpoints_has_none_on_its_way(subject: Subject) -> None:
    move = Move.between(subject.base_session, subject.session)
    path = walk(move, subject.asked.queries, subject.asked.measure, (0.0, 1.0), None)
    assert along_checkpoints(subject, subject.asked.queries, path) == []
