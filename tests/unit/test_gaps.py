"""The five gaps: they add up, they lie where they were planted, and their reading follows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.evaluate.gaps import STATIONS, TERMS, Gaps, gaps
from headwater.types import UsageError

D, Q = 12, 6


def tables(seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{name}_DQ": scale * rng.normal(size=(D, Q)) for name in STATIONS}


def spaced(*steps: float, seed: int = 0) -> Gaps:
    """Stations whose neighbours differ by random numbers of these sizes, from cold training (an effect of about .8) on."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=(D, Q))]
    for step in steps:
        values.append(values[-1] - step * rng.normal(size=(D, Q)))
    return gaps(**{f"{name}_DQ": value for name, value in zip(STATIONS, values, strict=True)})


@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1.0, 1e4]))
def test_the_terms_add_up(seed: int, scale: float) -> None:
    given_tables = tables(seed, scale)
    found = gaps(**given_tables)
    assert tuple(found.terms_DQ) == TERMS
    np.testing.assert_allclose(
        sum(found.terms_DQ.values()), given_tables["cold_DQ"] - given_tables["solver_DQ"], rtol=0, atol=1e-10 * scale
    )
    assert found.telescoping_error <= 1e-10 * scale


def test_each_term_is_the_difference_of_its_neighbours() -> None:
    given_tables = tables()
    found = gaps(**given_tables)
    np.testing.assert_array_equal(found.terms_DQ["non_convergence"], given_tables["proximal_DQ"] - given_tables["pbrf_DQ"])
    assert found.sizes["solver_error"] == np.abs(given_tables["exact_DQ"] - given_tables["solver_DQ"]).mean()


@pytest.mark.parametrize("k", range(5))
def test_a_station_moved_moves_only_what_touches_it(k: int) -> None:
    given_tables = tables()
    before = gaps(**given_tables).sizes
    moved = f"{STATIONS[k + 1]}_DQ"
    after = gaps(**{**given_tables, moved: given_tables[moved] + 1}).sizes
    assert {name for name in TERMS if before[name] != after[name]} == set(TERMS[k : k + 2])


def test_a_broken_solver_is_the_solvers_gap_and_no_other() -> None:
    given_tables = tables()
    before, after = (gaps(**given_tables | {"solver_DQ": factor * given_tables["solver_DQ"]}).sizes for factor in (1, 50))
    assert [name for name in TERMS if before[name] != after[name]] == ["solver_error"]


def test_its_reading() -> None:
    asked = spaced(0.8, 0.3, 0.3, 0.01, 0.01).reading()
    assert asked.status == "warn"
    assert asked.because.startswith("you asked another question")
    assert "initialisation" in (asked.next_step or "")
    wrong = spaced(0.1, 0.05, 0.05, 0.1, 2.0).reading()
    assert wrong.status == "fail"
    assert wrong.because.startswith("your estimator is wrong")
    assert "solver" in (wrong.next_step or "")
    assert spaced(0.05, 0.02, 0.02, 0.01, 0.01).reading().status == "ok"
    both = spaced(0.4, 0.0, 0.0, 0.4, 0.0).reading()
    assert both.status == "unknown"
    assert both.because.startswith("undetermined")
    assert both.interval is not None
    assert both.interval[0] < 1 < both.interval[1]


def test_its_reading_says_so_when_both_sides_are_at_fault() -> None:
    """The question's gaps are the larger ones, and the estimate is off by the size of the PBRF effect all the same."""
    both = spaced(8.0, 6.0, 0.0, 9.0, 0.0)
    assert both.ratio_interval()[1] < 1
    reading = both.reading()
    assert reading.status == "fail"
    assert reading.because.startswith("you asked another question, and your estimator is wrong besides")
    assert "damping" in (reading.next_step or "")
    assert "initialisation" in (reading.next_step or "")
    other = spaced(0.8, 0.0, 0.0, 9.0, 0.0)
    assert other.ratio_interval()[0] > 1
    assert other.reading().because.startswith("you asked another question, and")


def test_shares_are_of_what_each_side_is_about() -> None:
    found = spaced(0.8, 0.3, 0.3, 0.4, 0.2)
    changes = found.changes_DQ
    lost, asked = (sum(found.sizes[name] for name in names) for names in (TERMS[3:], TERMS[:3]))
    assert found.estimator_share == pytest.approx(lost / np.abs(changes["pbrf"]).mean())
    assert found.question_share == pytest.approx(asked / np.abs(changes["cold"]).mean())
    assert found.to_json()["estimator_share"] == found.estimator_share
    nothing = gaps(**{f"{name}_DQ": np.full((D, Q), float(name == "cold")) for name in STATIONS})
    assert np.isnan(nothing.estimator_share)
    assert nothing.reading().status == "warn"


def test_what_was_not_reached_is_in_no_term() -> None:
    given_tables = tables()
    with_hole = {**given_tables, "pbrf_DQ": given_tables["pbrf_DQ"].copy()}
    with_hole["pbrf_DQ"][3] = np.nan
    found = gaps(**with_hole)
    assert all(np.isnan(term_DQ[3]).all() for term_DQ in found.terms_DQ.values())
    kept = np.arange(D) != 3
    rest = gaps(**{name: table[kept] for name, table in given_tables.items()})
    assert found.sizes == pytest.approx(rest.sizes)
    assert found.effect == pytest.approx(rest.effect)
    assert found.reading().n == (D - 1) * Q


def test_nothing_measured_is_unknown() -> None:
    nothing = gaps(**tables() | {"warm_DQ": np.full((D, Q), np.nan)})
    assert nothing.reading().status == "unknown"
    assert nothing.to_json()["n"] == 0


def test_tables_of_other_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="six of the same"):
        gaps(**tables() | {"warm_DQ": np.zeros((D, Q + 1))})
    with pytest.raises(UsageError, match="six of the same"):
        gaps(**{name: np.zeros(3) for name in tables()})
