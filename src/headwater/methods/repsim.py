"""Representation similarity: rows that look to the model like the query, whatever they taught it."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, cosines, fit_norms, make_scores
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class RepSim:
    """`cos(r_q, r_n)`, r the last layer's hidden state at the last prompt token: the paper's baseline that beat influence functions.

    It reads the prompt only and is blind to what the response did. Fit: row norms, one pass. Score: one scan, Q N H
    multiplications. A representation of zeros scores 0, a bad row NaN.
    """

    name = "repsim"
    unit = None
    requires = frozenset({"representation"})
    summary = "cosine of the hidden states at the last prompt token; reads the prompt only"
    reference = "Li et al. 2024, arXiv 2409.19998"
    cost = "one pass to fit, one scan of the representations"

    def fit(self, index: Index) -> State:
        return fit_norms(index, "representation")

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(
            self, cosines(state, index, queries, "representation"), index, queries, feature="representation", kernel="cosine"
        )
