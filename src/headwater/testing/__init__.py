"""What every method must do, whoever wrote it: a conformance suite in the manner of scikit-learn's estimator checks.

    from headwater.testing import check_method
    check_method(MyMethod())                      # raises AssertionError, naming each check that failed

or, one test for each check, with readable ids:

    @pytest.mark.parametrize("check", [pytest.param(run, id=id) for id, run in method_checks(MyMethod())])
    def test_my_method(check): check()

The checks build small indexes of seeded numbers and texts, or use the ones given. They need no model and take no time.
"""

from __future__ import annotations

from headwater.testing.methods import Case, check_method, method_checks
from headwater.testing.outcomes import Outcome
from headwater.testing.toys import COLUMNS, LAYOUT, WORDS, Reblocked, Toy, toy_queries, toy_rows

__all__ = ["COLUMNS", "LAYOUT", "WORDS", "Case", "Outcome", "Reblocked", "Toy", "check_method", "method_checks", "toy_queries", "toy_rows"]
