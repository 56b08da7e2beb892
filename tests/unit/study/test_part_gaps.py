"""The part `gaps`: the audit's table as cells, and the worlds that have none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.audit import gaps as audit
from headwater.evaluate.gaps import STATIONS, TERMS, gaps
from headwater.study.cells import Place
from headwater.study.parts.gaps import CHANGES, EFFECT, GAP, SHARE, Gaps, cells, mean_over_removals
from headwater.study.tasks.task import Task
from headwater.study.world import World

PART = Gaps(removals=1, queries=2, damping=300.0, steps=40)
HERE = Place("toy", "tiny", 0, "gaps")


def test_its_cells_are_the_table_of_the_audit(world: World) -> None:
    outcome = PART(world)
    check = audit.Gaps(1, 2, damping=300.0, steps=40)
    report = check(PART.subject(world))
    by_name = {cell.method: cell for cell in outcome.cells}
    assert {name for name, cell in by_name.items() if cell.metric == GAP} == set(TERMS)
    assert all(cell.value is not None and cell.unit == "nats" for cell in outcome.cells if cell.metric == GAP)
    (drawn,) = report.plots
    assert [by_name[term].value for term in TERMS] == pytest.approx(list(drawn.series[0].y), rel=1e-6)
    assert outcome.findings[0].because.casefold() == report.findings[0].because.casefold()
    assert outcome.facts["damping"] == 300.0
    assert outcome.facts["removed rows"] == 1


def test_a_gap_is_the_mean_absolute_difference_of_two_stations() -> None:
    rng = np.random.default_rng(0)
    tables = {f"{name}_DQ": rng.normal(size=(2, 5)) for name in STATIONS}
    found = {(cell.method, cell.metric): cell for cell in cells(HERE, gaps(**tables))}
    assert found["warm_start", GAP].value == pytest.approx(np.abs(tables["cold_DQ"] - tables["warm_DQ"]).mean())
    assert found["warm_start", GAP].n == 5
    assert found["cold training", EFFECT].value == pytest.approx(np.abs(tables["cold_DQ"]).mean())
    assert found["estimator", SHARE].over == CHANGES


def test_what_reached_no_minimum_is_an_empty_cell_that_says_so() -> None:
    tables = {f"{name}_DQ": np.ones((1, 2)) for name in STATIONS} | {"pbrf_DQ": np.full((1, 2), np.nan)}
    found = list(cells(HERE, gaps(**tables)))
    assert all(cell.value is None and "no minimisation reached its end" in cell.because for cell in found)


def test_a_removal_that_is_not_known_counts_for_nothing() -> None:
    values_Q = mean_over_removals(np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan]]))
    np.testing.assert_array_equal(values_Q, [2.0, 2.0, np.nan])


def other(world: World, *, task: Task | None = None, quick: bool = False) -> World:
    size = replace(world.size, is_quick=quick)
    return World(world.folder, task or world.task, world.model, world.base, size, world.seed)


def test_only_small_worlds_of_a_whole_study_have_a_table(world: World) -> None:
    assert PART.unfit(world) == ""
    assert "no time" in PART.unfit(other(world, quick=True))
    assert "takes minutes" in PART.unfit(other(world, task=replace(world.task, rows=world.task.rows * 10)))
