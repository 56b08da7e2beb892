"""The gradient cosine: the gradient product without the lengths, so that no row ranks high just by being long or hard."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, cosines, fit_norms, make_scores
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class GradCos:
    """`score(q, n) = -cos(h_q, g_n)`: no unit, it ranks. Fit: row norms, one pass. Score: one scan, Q N D multiplications.

    A zero gradient (row or query) scores 0: no evidence. A bad row scores NaN.
    """

    name = "grad_cos"
    unit = None
    requires = frozenset({"gradient"})
    summary = "the gradient product without the lengths: mends rows that rank high for every query"
    reference = "Charpiat et al. 2019, input similarity"
    cost = "one pass to fit, one scan of the index"

    def fit(self, index: Index) -> State:
        return fit_norms(index, "gradient")

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, -cosines(state, index, queries, "gradient"), index, queries, feature="gradient", kernel="cosine")
