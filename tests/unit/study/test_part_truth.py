"""The part `truth`: its cells against figures taken by hand, what its words rest on, and that it goes on where it was killed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from headwater.evaluate.classes import ClassLabels
from headwater.evaluate.figure import Figure
from headwater.evaluate.lds import predicted_outcomes
from headwater.study.cells import Cell
from headwater.study.parts.part import Outcome
from headwater.study.parts.settings import fisher, halves, k_removed, setting, training_seeds
from headwater.study.parts.truth import (
    AGAIN,
    BEYOND,
    CEILING,
    CHANGE,
    LDS,
    LESS,
    SPREAD,
    Compared,
    Removals,
    Retraining,
    compared,
    finding,
    one_of_each,
)
from headwater.study.world import World
from headwater.truth.design import all_rows, without_top
from headwater.types import Truth

PART = Retraining(
    settings=(setting("grad_cos"), fisher(100), setting("random"), setting("embedding")),
    removed=(setting("grad_cos"), setting("embedding")),
)


@pytest.fixture(scope="module")
def outcome(world: World) -> Outcome:
    return PART(world)


def found(outcome: Outcome, method: str, metric: str, variant: str = "") -> Cell:
    (cell,) = [cell for cell in outcome.cells if (cell.method, cell.metric) == (method, metric) and cell.variant.startswith(variant)]
    return cell


def test_lds_is_spearmans_correlation_over_the_halves(world: World, outcome: Outcome) -> None:
    truth, scores = halves(world), world.scores("grad_cos")
    by_hand = [
        spearmanr(truth.kept_DN @ scores.values_QN[q], truth.outcomes_DSQ.mean(1)[:, q]).statistic for q in range(len(world.queries))
    ]
    cell = found(outcome, "grad_cos", LDS)
    assert cell.value == pytest.approx(np.mean(by_hand), abs=1e-9)
    assert cell.interval is not None
    assert found(outcome, "grad_cos", LESS).value == pytest.approx(cell.value - found(outcome, "same class", LDS).value)
    assert found(outcome, CEILING, LDS).value is not None


def test_a_method_that_cannot_score_is_an_empty_cell_with_its_reason(outcome: Outcome) -> None:
    cell = found(outcome, "embedding", LDS)
    assert cell.value is None
    assert "encoder" in cell.because or "embedding" in cell.because
    assert found(outcome, "embedding", BEYOND).because == cell.because


def test_a_removal_is_the_change_from_all_rows_with_the_same_seed(world: World, outcome: Outcome) -> None:
    k, seed = k_removed(world), training_seeds(world, 1)[0]
    assert outcome.facts["k"] == k == 1
    kept_N = without_top(world.scores("grad_cos").values_QN[0], k).kept_DN[0]
    all_N = all_rows(len(world.rows)).kept_DN[0]
    outcomes = [truth_of(world, kept) for kept in (kept_N, all_N)]
    assert found(outcome, "grad_cos", CHANGE).value == pytest.approx(outcomes[0] - outcomes[1], abs=1e-9)
    assert found(outcome, "random", CHANGE).n == PART.draws
    assert found(outcome, AGAIN, SPREAD).value > 0
    assert found(outcome, AGAIN, SPREAD).n == PART.seeds
    assert seed == 0


def truth_of(world: World, kept_N: np.ndarray) -> float:
    """The first query's measure after a training of our own."""
    from headwater.truth.retrain import measured

    rows = [row for row, kept in zip(world.rows, kept_N, strict=True) if kept]
    return measured(world.training(rows, training_seeds(world, 1)[0]), world.measure, world.queries)[0]


def test_a_killed_part_goes_on_to_the_same_cells(world: World, outcome: Outcome) -> None:
    bank = world.folder / "banks"
    there = sorted(bank.glob("*/outcomes/*.json"))
    times = {path: path.stat().st_mtime_ns for path in there}
    there[0].unlink()
    again = PART(world)
    assert list(again.cells) == list(outcome.cells)
    assert sorted(bank.glob("*/outcomes/*.json")) == there
    assert [path for path in there if path.stat().st_mtime_ns != times[path]] == there[:1]


def test_where_the_class_is_the_cause_the_class_has_an_lds_of_one(world: World) -> None:
    """Outcomes that are the number of kept rows of a query's class, and nothing else."""
    drawn = halves(world)
    outcomes_DQ = predicted_outcomes(world.by_class(), drawn)
    rng = np.random.default_rng(0)
    planted = Truth(
        np.stack([outcomes_DQ + 1e-6 * rng.normal(size=outcomes_DQ.shape) for _ in range(2)], axis=1), drawn.kept_DN, drawn.train_ids,
        drawn.query_ids, (0, 1), "cold", "nats", drawn.designs,
    )  # fmt: skip
    table = compared(world, (setting("random"), setting("repsim_response")), planted)
    assert table.class_alone.value > 0.9
    assert {str(one.tried): one.lds.value for one in table.methods}["random"] < 0.8
    assert table.about_class().value == table.class_alone.value


SURE, WIDE, LOW, BELOW = (Figure(sum(ends) / 2, ends, 40, "") for ends in ((0.6, 0.8), (0.3, 0.6), (0.05, 0.2), (-0.4, -0.2)))
LIKE_CLASS, NOTHING = Figure(0.0, (-0.1, 0.1), 40, ""), Figure(math.nan, None, 0, "")


@pytest.mark.parametrize(
    ("lds", "less", "ceiling", "said"),
    [
        (SURE, BELOW, 0.9, "right"),
        (WIDE, LIKE_CLASS, 0.9, "undetermined"),
        (WIDE, BELOW, 0.9, "behind"),
        (LOW, LIKE_CLASS, 0.9, "wrong"),
        (LOW, SURE, 0.9, "wrong"),
        (LOW, LIKE_CLASS, 0.09, "right"),
        (SURE, LIKE_CLASS, None, "undetermined"),
        (SURE, BELOW, None, "behind"),
        (BELOW, LIKE_CLASS, None, "wrong"),
        (NOTHING, NOTHING, 0.9, "undetermined"),
    ],
)
def test_what_is_said_of_the_cause_rests_on_intervals(lds: Figure, less: Figure, ceiling: float | None, said: str) -> None:
    assert Compared(setting("any"), SURE, lds, less).cause(ceiling) == said


@pytest.mark.parametrize(
    ("interval", "chance", "said"), [((0.8, 1.0), 0.1, True), ((0.3, 0.7), 0.1, None), ((0.1, 0.4), 0.1, False), ((0.55, 0.9), 0.6, None)]
)
def test_what_is_said_of_the_class_is_against_a_half_or_chance(interval: tuple[float, float], chance: float, said: bool | None) -> None:
    assert Compared(setting("any"), Figure(0.5, interval, 40, ""), SURE, SURE).class_is_right(chance) is said


def test_every_method_has_a_finding_and_contradictions_are_warned_of(outcome: Outcome) -> None:
    names = [finding.name for finding in outcome.findings]
    assert names == ["truth: the class", "truth: grad_cos", "truth: fisher (damping=100 * mean_eigenvalue)", "truth: random"]
    assert "Without its first 1 rows" in outcome.findings[1].because
    assert "Without its first" not in outcome.findings[2].because


def test_queries_are_of_different_classes_first() -> None:
    labels = ClassLabels(np.array(["a", "b"]), np.array(["a", "a", "b", "b", "a"]))
    assert one_of_each(labels, 2) == [0, 2]
    assert one_of_each(labels, 3) == [0, 2, 1]
    assert one_of_each(labels, 9) == [0, 2, 1, 3, 4]


def test_contradictions_of_class_and_cause_are_warned_of(world: World, outcome: Outcome) -> None:
    table = compared(world, (), halves(world))
    table = replace(table, ceiling=Figure(0.9, (0.8, 1.0), 40, ""), chance=0.1)
    removals = Removals.of(world, PART)

    def status(accuracy: Figure, lds: Figure) -> str:
        return finding(Compared(setting("any"), accuracy, lds, LIKE_CLASS), table, removals).status

    assert status(SURE, SURE) == status(LOW, LOW) == "ok"
    assert status(SURE, LOW) == status(LOW, SURE) == "warn"
    assert status(SURE, WIDE) == status(WIDE, SURE) == "unknown"
