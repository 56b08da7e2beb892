"""RepT: rows at whose answer's start the model stood where it stands for the query, and was pulled the same way."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, cosines, fit_norms, make_scores
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class RepT:
    """`cos([r_q ; d_q], [r_n ; d_n])`, r the hidden state at the last prompt token in a chosen layer, d the derivative of the loss by it.

    The last prompt token is the one that predicts the first answer token. The loss is the row's, a sum over its targets; a query's is minus
    its measure, so that a row equal to the query scores 1 (Li et al. 2025). No unit: it ranks. Fit: row norms, one pass. Score: one scan,
    2 Q N H multiplications. A feature of zeros scores 0, a bad row NaN.
    """

    name = "rept"
    unit = None
    requires = frozenset({"rept"})
    summary = "cosine of hidden state and its gradient where the answer begins"
    reference = "Li et al. 2025, arXiv 2510.02334"
    cost = "one pass to fit, one scan of 2 H numbers a row"

    def fit(self, index: Index) -> State:
        return fit_norms(index, "rept")

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, cosines(state, index, queries, "rept"), index, queries, feature="rept", kernel="cosine")
