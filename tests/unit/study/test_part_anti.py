"""The part `anti`: scores of rows that were not trained on, the tail patch, and preferences made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater import methods
from headwater.study.cells import Cell
from headwater.study.parts.anti import AGREES, PREFERS, TAIL_PATCH, Anti, Pairs, Preference, about_truth, finding, own, score
from headwater.study.parts.part import Outcome
from headwater.study.parts.settings import fisher, setting
from headwater.study.tasks.task import AntiPair
from headwater.study.world import World
from headwater.truth.tail_patch import Patch

PART = Anti(settings=(setting("grad_cos"), setting("lexical"), fisher(10), setting("embedding")), steps=1)


@pytest.fixture(scope="module")
def outcome(world: World) -> Outcome:
    return PART(world)


def found(outcome: Outcome, method: str, metric: str) -> Cell:
    (cell,) = [cell for cell in outcome.cells if (cell.method, cell.metric) == (method, metric)]
    return cell


@pytest.mark.parametrize(
    "tried", [setting("grad_dot"), setting("grad_cos"), setting("datainf"), fisher(10), setting("repsim"), setting("rept")], ids=str
)
def test_a_document_that_is_a_training_row_has_that_rows_score(world: World, tried) -> None:
    """The first eight rows as the documents; a gradient product is divided by the number of rows that it is among."""
    rows = [world.task.rows[n] for n in world.order_N[:8]]
    pairs = tuple(AntiPair(*rows[2 * q : 2 * q + 2]) for q in range(4))
    documents = Pairs(World(world.folder, replace(world.task, anti=pairs), world.model, world.base, world.size, world.seed)).index
    ours, theirs = score(world, documents, tried), world.scores(tried.method, **tried.options).values_QN[:, :8]
    factor = len(world.rows) / len(documents) if tried.method == "grad_dot" else 1.0
    np.testing.assert_allclose(ours, factor * theirs, rtol=1e-3, atol=1e-5 * np.abs(theirs).max())


def test_how_rare_a_word_is_is_learned_from_the_training_rows(world: World) -> None:
    """Four of a query's words are in every training row with "yes", so that they weigh less than among the documents alone."""
    documents, lexical = Pairs(world).index, methods.get("lexical")
    ours = score(world, documents, setting("lexical"))
    alone = lexical.score(lexical.fit(documents), documents, world.asked).values_QN
    assert not np.allclose(ours, alone)
    assert own(ours)[0, 0] > own(ours)[0, 1], "its own words come first"
    np.testing.assert_array_equal(score(world, documents, setting("lexical", k1=0.0)) > 0, ours > 0)


def test_a_small_step_down_the_loss_does_what_the_gradient_product_says(world: World) -> None:
    pairs, lr = Pairs(world), 1e-5
    predicted_Q2 = own(score(world, pairs.index, setting("grad_dot"))) * len(pairs.index) * lr
    measured_Q2 = pairs.patched(Patch(lr=lr))
    np.testing.assert_allclose(measured_Q2, predicted_Q2, rtol=0.1, atol=0.05 * np.abs(predicted_Q2).max())


def test_its_cells_are_the_shares_of_its_scores(world: World, outcome: Outcome) -> None:
    scores_Q2 = Pairs(world).scores(setting("grad_cos"))
    cell = found(outcome, "grad_cos", PREFERS)
    assert cell.value == (scores_Q2[:, 1] > scores_Q2[:, 0]).mean()
    assert cell.n == len(world.queries)
    truth_Q2 = Pairs(world).patched(Patch(lr=PART.lr_share * world.model.lr, optimizer="adamw"))
    agree_Q = (scores_Q2[:, 1] > scores_Q2[:, 0]) == (truth_Q2[:, 1] > truth_Q2[:, 0])
    assert found(outcome, "grad_cos", AGREES).value == agree_Q.mean()
    assert found(outcome, TAIL_PATCH, PREFERS).value == (truth_Q2[:, 1] > truth_Q2[:, 0]).mean()
    assert found(outcome, "embedding", PREFERS).because


def test_it_is_not_computed_twice(world: World, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pairs, "index", property(lambda self: pytest.fail("computed again")))
    monkeypatch.setattr(Pairs, "_patched", lambda *given: pytest.fail("patched again"))
    again = Anti(settings=PART.settings[:3], steps=1)(world)
    assert [cell for cell in outcome.cells if cell.method != "embedding"] == list(again.cells)


def preference(*scores: tuple[float, float], name: str = "any") -> Preference:
    return Preference(setting(name), np.array(scores))


def test_a_tie_is_no_preference_and_a_missing_score_no_query() -> None:
    one = preference((0, 1), (1, 0), (2, 2), (np.nan, 1))
    assert one.prefers.value == pytest.approx(1 / 3)
    assert one.prefers.n == 3
    truth = preference((0, 1), (0, 1), (0, 1), (0, 1))
    assert one.agrees(truth).value == pytest.approx(1 / 3)
    undecided = preference((1, 1), (1, 1), (1, 1), (1, 1))
    assert one.agrees(undecided).n == 0


def test_who_follows_the_words_against_the_truth_is_warned_of() -> None:
    behaviour, words = preference(*[(0, 1)] * 12), preference(*[(1, 0)] * 12)
    either = preference(*[(0, 1), (1, 0)] * 6)
    assert finding(words, behaviour).status == "warn"
    assert "follows the words" in finding(words, behaviour).because
    assert finding(words, words).status == finding(behaviour, behaviour).status == "ok"
    assert finding(either, behaviour).status == finding(behaviour, either).status == "unknown"
    assert [about_truth(one).status for one in (behaviour, words, either)] == ["ok", "warn", "unknown"]
    less_harm = about_truth(preference(*[(-2, -1)] * 12))
    assert less_harm.status == "unknown"
    assert "does not help" in less_harm.because


def test_a_task_without_anti_documents_has_nothing_to_measure(world: World) -> None:
    bare = World(world.folder, replace(world.task, anti=()), world.model, world.base, world.size, world.seed)
    assert PART.unfit(bare) == "this task has no anti-documents"
    assert PART.unfit(world) == ""
