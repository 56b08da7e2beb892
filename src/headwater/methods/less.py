"""LESS: does Adam's step on the row point where the query's gradient does?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwater.methods.shared import (
    Weights,
    check,
    check_rows,
    check_weights,
    cosines,
    fit_norms,
    make_scores,
    members_of,
    pairs,
    part_of,
    prefixed,
    rows_key,
    step_sizes,
)
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class Less:
    """`score(q, n) = -sum_k eta_k cos(h_q(theta_k), Gamma_n(theta_k))` over checkpoints k (Xia et al. 2024, definition 3.1).

    Gamma_n is Adam's update with the row's gradient, the rows of an "adam" member; the query's side is the plain gradient of its measure.
    The step goes against Gamma, hence the sign. No unit: it ranks. `weights` "equal" counts every checkpoint alike. Fit: row norms, one
    pass over each member. Score: one scan of each. A zero gradient scores 0, a bad row NaN.
    """

    weights: Weights = "learning_rate"

    name = "less"
    unit = None
    requires = frozenset({"members:adam"})
    summary = "cosine of the query's gradient with Adam's step on the row, over checkpoints"
    reference = "Xia et al. 2024, definition 3.1"
    cost = "one pass to fit and one scan, of each checkpoint's rows"

    def __post_init__(self) -> None:
        check_weights(self.name, self.weights)

    def fit(self, index: Index) -> State:
        parts = [prefixed(member.name, fit_norms(member.index, "gradient")) for member in members_of(index, "adam")]
        return {name: tensor for part in parts for name, tensor in part.items()} | {"rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        checkpoints = pairs(index, queries, "adam")
        rates = step_sizes([member for member, _ in checkpoints], self.weights)
        values = [cosines(part_of(state, member.name), member.index, asked, "gradient") for member, asked in checkpoints]
        total_QN = -sum((rate * value_QN for rate, value_QN in zip(rates, values, strict=True)), start=torch.zeros(()))
        names = {member.name: rate for (member, _), rate in zip(checkpoints, rates, strict=True)}
        return make_scores(self, total_QN, index, queries, step_sizes=names)
