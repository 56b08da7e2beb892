"""The part `epochs`: figures by checkpoint, their spread, the losses, and what is said of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from headwater.evaluate.classes import accuracy
from headwater.evaluate.figure import Figure
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.two_way import two_way_figure
from headwater.study.cells import Cell
from headwater.study.parts.epochs import ACCURACY, LDS, LOSS, MOVED, At, Course, Epochs, finding, spread_of
from headwater.study.parts.part import Outcome
from headwater.study.parts.settings import halves, lds_table, setting
from headwater.study.world import World
from headwater.truth.retrain import measured

PART = Epochs(settings=(setting("grad_dot"), setting("rept"), setting("lexical"), setting("lissa", damping=0.5, max_steps=5)))


@pytest.fixture(scope="module")
def outcome(world: World) -> Outcome:
    return PART(world)


def found(outcome: Outcome, method: str, metric: str, variant: str = "") -> Cell:
    (cell,) = [cell for cell in outcome.cells if (cell.method, cell.metric, cell.variant) == (method, metric, variant)]
    return cell


def test_each_checkpoint_has_the_figures_of_its_own_scores(world: World, outcome: Outcome) -> None:
    assert [checkpoint.step for checkpoint in world.checkpoints] == [1, 2]
    for epoch, checkpoint in zip((1, 2), world.checkpoints, strict=True):
        scores = world.scores("grad_dot", at=checkpoint)
        expected = two_way_figure(lds_table(scores, halves(world)), correlation=True)
        assert found(outcome, "grad_dot", LDS, f"epoch={epoch}").value == expected.value
        assert found(outcome, "grad_dot", ACCURACY, f"epoch={epoch}").value == accuracy(Ranking(scores.values_QN), world.labels).value
    assert not np.allclose(*(world.scores("grad_dot", at=checkpoint).values_QN for checkpoint in world.checkpoints))


def test_the_last_checkpoint_is_the_model_that_was_trained(world: World) -> None:
    np.testing.assert_allclose(
        world.scores("grad_dot", at=world.checkpoints[-1]).values_QN, world.scores("grad_dot").values_QN, rtol=1e-4, atol=1e-6
    )


def test_a_method_without_a_model_is_one_line(outcome: Outcome) -> None:
    assert found(outcome, "lexical", LDS, "epoch=1").value == found(outcome, "lexical", LDS, "epoch=2").value
    assert found(outcome, "lexical", spread_of(LDS)).value == 0


def test_what_a_checkpoint_does_not_keep_is_an_empty_cell(outcome: Outcome) -> None:
    cell = found(outcome, "rept", ACCURACY, "epoch=1")
    assert cell.value is None
    assert "rept" in cell.because
    assert found(outcome, "rept", ACCURACY, "epoch=2").value is not None
    assert found(outcome, "rept", MOVED).because == "fewer than two checkpoints have figures"


def test_options_stand_before_the_epoch(outcome: Outcome) -> None:
    assert found(outcome, "lissa", ACCURACY, "damping=0.5; epoch=2").value is not None


def test_losses_are_those_of_the_model_a_target(world: World, outcome: Outcome) -> None:
    for name, examples in (("training rows", world.rows), ("queries", world.queries)):
        by_hand = [
            -value / example.n_loss_tokens
            for value, example in zip(measured(world.session, world.measure, examples), examples, strict=True)
        ]
        assert found(outcome, name, LOSS, "epoch=2").value == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert found(outcome, "training rows", LOSS, "epoch=1").value > found(outcome, "training rows", LOSS, "epoch=2").value


def course(*values: float, hits: list[np.ndarray] | None = None, name: str = "grad_dot") -> Course:
    hits = hits or [np.zeros(20)] * len(values)
    points = [
        At(i + 1.0, {ACCURACY: Figure(value, None, 20, "queries")}, hits_Q)
        for i, (value, hits_Q) in enumerate(zip(values, hits, strict=True))
    ]
    return Course(setting(name), points)


def test_the_spread_is_over_the_last_half() -> None:
    assert course(0.1, 0.9, 0.4, 0.5, 0.7).spread(ACCURACY) == pytest.approx(0.3)
    assert course(0.1, 0.9).spread(ACCURACY) == pytest.approx(0.8)
    assert np.isnan(course(0.1).spread(ACCURACY))


def test_a_method_that_moved_is_named() -> None:
    rng = np.random.default_rng(0)
    risen = course(0.1, 0.2, 0.9, hits=[np.zeros(40), np.zeros(40), (rng.random(40) < 0.9).astype(float)])
    still = course(0.5, 0.5, 0.5, hits=[np.ones(40)] * 3, name="repsim")
    told = finding([risen, still])
    assert told.status == "warn"
    assert "1 of 2 methods moved: grad_dot" in told.because
    assert finding([still]).status == "ok"
    wide = course(0.5, 0.5, 0.5, hits=[np.ones(40), np.tile([0.0, 1.0], 20), np.tile([1.0, 0.0], 20)])
    assert finding([wide]).status == "unknown"
    assert "undetermined" in finding([wide]).because


def test_one_checkpoint_is_no_way() -> None:
    assert "nothing can be said" in PART.unfit(cast(Any, SimpleNamespace(checkpoints=(1,))))
    assert PART.unfit(cast(Any, SimpleNamespace(checkpoints=(1, 2)))) == ""


def test_it_shares_the_bank_of_halves(world: World, outcome: Outcome) -> None:
    """With the truth part, whichever comes first: as many outcomes as halves times seeds, and no second folder."""
    assert len(list((world.folder / "banks" / "halves" / "outcomes").glob("*.json"))) == world.size.halves * world.size.retrainings
    assert not [path for path in (world.folder / "banks").iterdir() if path.name not in ("halves", "removals")]
    assert [plot.title for plot in outcome.plots][-1] == "Losses along the epochs"
