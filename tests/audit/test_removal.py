"""Removal: what goes with the named rows is said with its interval, from a bank or from retraining; chance is called undetermined."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headwater.audit.behaviour import greedy_answer, shown
from headwater.audit.removal import Removal, groups_of, known_bank
from headwater.audit.subject import Subject
from headwater.audit.verdict import removed
from headwater.truth.bank import write_bank
from headwater.truth.design import Designs, all_rows, without_random
from headwater.truth.finetune import Recipe
from headwater.types import Finding, Truth
from tests.audit_faults import NOTHING, THOROUGH, learned_world, untrained_world
from tests.audit_world import AuditWorld

SMALL = {"queries": 2, "draws": 2}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> AuditWorld:
    return learned_world(tmp_path_factory.mktemp("learned"))


@pytest.fixture(scope="module")
def retrained(learned: AuditWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, dict[str, Finding]]:
    """A copy of the world in which the check has trained."""
    world = AuditWorld(shutil.copytree(learned.folder, tmp_path_factory.mktemp("retrained") / "world"))
    subject = known(world, THOROUGH)
    assert Removal(**SMALL).passes(subject) >= 5 * 3 * THOROUGH.epochs
    return subject, findings(Removal(**SMALL)(subject).findings)


def known(world: AuditWorld, recipe: Recipe) -> Subject:
    return replace(world.subject(), training=recipe.model_dump())


def findings(found: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in found}


def bank(subject: Subject, *, effect: float, noise: float = 0.05, seeds: int = 6, draws: int = 3, folder: str = "mine") -> Path:
    """Outcomes by arithmetic: a query loses `effect` nats for each row of its named group that is gone."""
    n_rows, k, ids = len(subject.rows), subject.asked.k, subject.scores.query_ids
    designs = all_rows(n_rows) + without_random(n_rows, k, draws=draws)
    for method, groups in groups_of(subject, k).items():
        for q, group in enumerate(groups):
            designs = designs + Designs((f"top/{k}/{method}/{q}",), ~np.isin(np.arange(n_rows), group)[None])
    member_QN = np.stack([np.isin(np.arange(n_rows), group) for group in subject.group_QK])
    rng = np.random.default_rng(0)
    outcomes_DSQ = -effect * (~designs.kept_DN @ member_QN.T.astype(float))[:, None] + rng.normal(0, 1, (seeds, len(ids)))
    outcomes_DSQ = outcomes_DSQ + noise * rng.normal(size=outcomes_DSQ.shape)
    order = rng.permutation(n_rows)  # a bank has rows in an order of its own
    truth = Truth(
        outcomes_DSQ, designs.kept_DN[:, order], tuple(np.asarray(subject.scores.train_ids)[order].tolist()), ids,
        tuple(range(seeds)), "cold", "nats", designs.names,
    )  # fmt: skip
    return write_bank(subject.stored.run / "truth" / folder, truth)


@pytest.fixture
def banked(learned: AuditWorld, tmp_path: Path) -> Subject:
    return AuditWorld(shutil.copytree(learned.folder, tmp_path / "world")).subject()


def test_a_bank_is_read_at_no_cost_and_the_effect_is_recovered(banked: Subject) -> None:
    bank(banked, effect=1.0)
    check = Removal()
    assert check.passes(banked) == 0
    report = check(banked)
    found = findings(list(report.findings))["removal: measure"]
    n_rows, k = len(banked.rows), banked.asked.k
    assert found.status == "ok"
    assert found.value is not None
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1] < 0
    expected = -k + k * k / n_rows  # a random group has k / N of the named rows, on average over draws
    np.testing.assert_allclose(found.value, expected, atol=1.5)
    np.testing.assert_allclose(report.evidence["removal"], -found.value, atol=1.5)
    assert (report.evidence["removal_error"] < 1).all()
    told = [removed("q", {name: values_Q[q] for name, values_Q in report.evidence.items()}) for q in range(len(banked.asked.queries))]
    assert [verdict.status for verdict in told if verdict] == ["supported"] * len(told)
    assert report.plots[0].series[0].x == ["named (grad_cos)", "BM25", "RepSim", "random"]


def test_rows_that_do_as_much_by_bm25_are_said_to(banked: Subject) -> None:
    bank(banked, effect=1.0)
    told = findings(list(Removal()(banked).findings))["removal: measure"].because
    overlap = [len(set(a) & set(b)) for a, b in zip(*(list(groups_of(banked, 5)[name]) for name in ("grad_cos", "lexical")), strict=True)]
    assert ("BM25's rows do as much" in told) == (np.mean(overlap) == banked.asked.k)
    assert "RepSim's rows do" in told


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"effect": 0.0}, "unknown", "undetermined"),
        ({"effect": 0.2, "noise": 3.0}, "unknown", "undetermined"),
        ({"effect": 1.0, "seeds": 3}, "unknown", "3 seeds"),
        ({"effect": -1.0}, "fail", "less far down"),
    ],
)
def test_what_is_not_apart_is_undetermined(banked: Subject, options: dict[str, float], status: str, words: str) -> None:
    bank(banked, **options)  # pyright: ignore[reportArgumentType]
    found = findings(list(Removal()(banked).findings))["removal: measure"]
    assert (found.status, words in found.because) == (status, True)
    assert found.next_step


def test_a_bank_of_other_rows_or_another_measure_is_not_taken(banked: Subject) -> None:
    folder = bank(banked, effect=1.0)
    from headwater.truth.bank import read_bank

    truth = read_bank(folder)
    write_bank(folder, replace(truth, train_ids=tuple(f"x{n}" for n in range(len(truth.train_ids)))))
    assert known_bank(banked) is None
    write_bank(folder, replace(truth, recipe={"measure": {"name": "mean_loss"}}))
    assert known_bank(banked) is None
    write_bank(folder, replace(truth, kind="tail_patch"))
    assert known_bank(banked) is None
    write_bank(folder, truth)
    assert known_bank(banked) == folder


def test_a_bank_of_measures_leaves_behaviour_unknown(banked: Subject) -> None:
    bank(banked, effect=1.0)
    found = findings(list(Removal()(banked).findings))["removal: behaviour"]
    assert found.status == "unknown"
    assert "was not kept" in found.because


@pytest.mark.slow
def test_the_answer_goes_with_the_rows_that_taught_it(retrained: tuple[Subject, dict[str, Finding]]) -> None:
    _, found = retrained
    assert {name: finding.status for name, finding in found.items()} == {"removal: measure": "ok", "removal: behaviour": "ok"}
    for finding in found.values():
        assert finding.interval is not None
        assert finding.interval[1] < 0
        assert finding.n == 5
    assert found["removal: behaviour"].value is not None
    assert found["removal: behaviour"].value < -0.5


@pytest.mark.slow
def test_the_second_time_costs_nothing_and_another_behaviour_needs_no_training(retrained: tuple[Subject, dict[str, Finding]]) -> None:
    subject, before = retrained
    fresh = replace(subject, training={}, base=None)
    assert Removal(**SMALL).passes(fresh) == 0
    assert findings(list(Removal(**SMALL)(fresh).findings)) == before
    always = findings(list(Removal(**SMALL)(replace(fresh, behaves=lambda text, query: 1.0)).findings))["removal: behaviour"]
    never = findings(list(Removal(**SMALL)(replace(fresh, behaves=lambda text, query: 0.0)).findings))["removal: behaviour"]
    assert always.status == "unknown"
    assert "undetermined" in always.because
    assert never.status == "unknown"
    assert "too rarely" in never.because


def test_training_that_did_nothing_leaves_nothing_to_remove(tmp_path: Path) -> None:
    subject = known(untrained_world(tmp_path), NOTHING)
    found = findings(list(Removal(**SMALL)(subject).findings))
    assert {finding.status for finding in found.values()} == {"unknown"}
    assert "undetermined" in found["removal: measure"].because


def test_without_base_or_recipe_it_says_the_way_out(learned: AuditWorld) -> None:
    for subject in (learned.subject(), replace(learned.subject(), base=None)):
        report = Removal()(subject)
        assert [finding.status for finding in report.findings] == ["unknown", "unknown"]
        assert all(finding.next_step and "--base" in finding.next_step for finding in report.findings)
        assert Removal().passes(subject) == 0
    wrong = Removal()(replace(learned.subject(), training={"epochs": 0, "lr": 1.0})).findings[0]
    assert wrong.status == "unknown"
    assert "epochs" in wrong.because


def test_an_answer_is_the_response_to_the_last_token(learned: AuditWorld) -> None:
    subject = learned.subject()
    query = subject.asked.queries[0]
    answer = greedy_answer(subject.session, query)
    assert answer == query.tokens[query.loss_mask].tolist()
    sides = {"tokenizer": subject.session.tokenizer}
    assert shown([answer], [query], behaves=None, **sides).tolist() == [1.0]
    assert shown([answer[:-1]], [query], behaves=None, **sides).tolist() == [0.0]
    assert shown([answer], [query], behaves=lambda text, one: float(text.strip() == one.response), **sides).tolist() == [1.0]
