"""Representation similarity over the response: rows whose answers look to the model like the query's answer."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, cosines, fit_norms, make_scores
from headwater.types import Index, Scores, State

FEATURE = "representation_response"


@dataclass(frozen=True)
class RepSimResponse:
    """`cos(r_q, r_n)`, r the last layer's hidden state, mean over the response tokens' positions.

    Fit: row norms, one pass. Score: one scan, Q N H multiplications. A representation of zeros scores 0, a bad row NaN.
    """

    name = "repsim_response"
    unit = None
    requires = frozenset({FEATURE})
    summary = "cosine of the mean hidden state over the response"
    reference = "as repsim, read at the response"
    cost = "one pass to fit, one scan of the representations"

    def fit(self, index: Index) -> State:
        return fit_norms(index, FEATURE)

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, cosines(state, index, queries, FEATURE), index, queries, feature=FEATURE, kernel="cosine")
