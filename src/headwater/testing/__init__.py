"""What every method and every curvature must do, whoever wrote it: conformance suites in the manner of scikit-learn's estimator checks.

    from headwater.testing import check_curvature, check_method
    check_method(MyMethod())                      # raises AssertionError, naming each check that failed
    check_curvature(MyCurvature())

or, one test for each check, with readable ids:

    @pytest.mark.parametrize("check", [pytest.param(run, id=id) for id, run in method_checks(MyMethod())])
    def test_my_method(check): check()                # likewise curvature_checks

The checks build small indexes of seeded numbers and texts, or use the ones given. They need no model and take no time.
"""

from __future__ import annotations

from headwater.testing.curvatures import CurvatureCase, check_curvature, curvature_checks
from headwater.testing.methods import Case, check_method, method_checks
from headwater.testing.outcomes import Outcome
from headwater.testing.toys import COLUMNS, LAYOUT, WORDS, Reblocked, Toy, toy_queries, toy_rows

__all__ = [
    "COLUMNS",
    "LAYOUT",
    "WORDS",
    "Case",
    "CurvatureCase",
    "Outcome",
    "Reblocked",
    "Toy",
    "check_curvature",
    "check_method",
    "curvature_checks",
    "method_checks",
    "toy_queries",
    "toy_rows",
]
