"""The coverage benchmark: its truth is a population's, its table adds up, and an interval that ignores the subsets is found out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks import coverage


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("POPULATION_SUBSETS", 600), ("POPULATION_QUERIES", 200), ("POPULATIONS", 4)):
        monkeypatch.setattr(coverage, name, size)


def test_two_way_covers_and_query_only_does_not() -> None:
    """Few studies of a world where queries share most of the noise: the band is wide, the query-only interval far outside."""
    world = replace(coverage.WORLDS[0], n_subsets=32, n_queries=20)
    line = coverage.simulate(world, 80, np.random.default_rng(0))
    assert 0.86 <= line["two_way"] <= 1
    assert line["query_only"] < 0.8
    assert line["width_two_way"] > 1.5 * line["width_query_only"]


def test_a_perfect_prediction_of_noiseless_outcomes_scores_one() -> None:
    world = coverage.World("exact", 10, 10, shared_noise=0.0, noise=0.0, error=0.0, spread=0.0, common=0.5)
    assert coverage.true_score(replace(world, n_subsets=10), np.random.default_rng(0)) == pytest.approx(1)


def test_lines_of_other_worlds_are_kept() -> None:
    first, second = (
        {"world": world.name, "two_way": share, "query_only": 0.5} for world, share in zip(coverage.WORLDS, (0.94, 0.96), strict=False)
    )
    both = coverage.summed([second], [first], studies=10, seed=0)
    assert (both["lowest"], both["highest"], len(both["worlds"])) == (0.94, 0.96, 2)
    assert coverage.summed([{**first, "two_way": 0.95}], both["worlds"], 10, 0)["lowest"] == 0.95
