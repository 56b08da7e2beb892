"""The DataInf benchmark on a few rows: its loop is the formula, and a disagreement is no result."""

from __future__ import annotations

import pytest
from benchmarks import datainf


def test_both_sides_agree_and_the_ratio_is_for_all_queries() -> None:
    result = datainf.measure(n_rows=12, n_queries=3)
    assert result["largest_difference"] <= datainf.TOLERANCE
    assert (result["rows"], result["queries"], result["loop_queries_timed"]) == (12, 3, 1)
    assert result["ratio"] > 1


def test_a_loop_of_another_formula_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = datainf.looped_solve
    monkeypatch.setattr(datainf, "looped_solve", lambda query, rows: [1.001 * x for x in plain(query, rows)])
    with pytest.raises(AssertionError, match=r"the two differ by 0\.001 of the largest score"):
        datainf.measure(n_rows=12, n_queries=3)
