"""The gradient product: what one more step on a row would do to the measure, to first order and without curvature."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, make_scores, whole
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class GradDot:
    """`score(q, n) = -(1/N) h_q . g_n` in nats: h_q the gradient of the query's measure, g_n that of row n's loss.

    The change of the measure when the parameters move by `-(1/N) g_n`. Influence with `C + lambda = I`, TracIn at one
    checkpoint, the paper's "Hessian-free". N counts the live rows, bad ones too: they were trained on. Cost: one scan,
    Q N D multiplications. A zero gradient scores 0, a bad row NaN.
    """

    name = "grad_dot"
    unit = "nats"
    requires = frozenset({"gradient"})
    summary = "first-order change of the measure if the row were trained on once more"
    reference = "Pruthi et al. 2020, eq. 1 (one checkpoint); Koh and Liang 2017, eq. 2 with C + lambda = I"
    cost = "one scan of the index"

    def fit(self, index: Index) -> State:
        return {}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        values_QN = index.products("gradient", whole(queries, "gradient")) / -len(index)
        return make_scores(self, values_QN, index, queries, feature="gradient", kernel="dot")
