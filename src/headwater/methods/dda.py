"""DDA: what the tuned model says, less what the base model said already, over the course of the tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.methods.grad_cos import GradCos
from headwater.methods.grad_dot import GradDot
from headwater.methods.self_influence import influence
from headwater.methods.shared import check, check_rows, make_scores, members_of, pairs, pairs_if_any, part_of, prefixed, rows_key
from headwater.types import Index, Method, Scores, State


@dataclass(frozen=True)
class DDA:
    """`score(q, n) = mean_k s(q, n; theta_k) - s(q, n; theta_base)` (Wu et al. 2024).

    s is the `inner` method: "grad_cos", "grad_dot", or influence with a curvature, by name or as a mapping with its options. The theta_k
    are the checkpoints where the index has such members, else the model it was made of; theta_base is its "base" member. A difference of
    scores at two models predicts no change, so it has no unit. Cost: the inner method's, once for each model. A zero gradient scores 0, a
    bad row NaN.
    """

    inner: str | Mapping[str, Any] = "grad_cos"

    name = "dda"
    unit = None
    requires = frozenset({"gradient", "members:base"})
    may_use = frozenset({"members:checkpoint"})
    summary = "the score at the tuned model less that at the base model, averaged over checkpoints"
    reference = "Wu et al. 2024, arXiv 2410.01285"
    cost = "that of the inner method, once for each model"

    def __post_init__(self) -> None:
        self._inner()

    def fit(self, index: Index) -> State:
        indexes = {"": index} if not index.members("checkpoint") else {m.name: m.index for m in index.members("checkpoint")}
        parts = [prefixed(f"tuned:{name}", self._inner().fit(one)) for name, one in indexes.items()]
        parts.append(prefixed("base", self._inner().fit(members_of(index, "base")[0].index)))
        return {name: tensor for part in parts for name, tensor in part.items()} | {"rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        checkpoints = [(member.name, member.index, asked) for member, asked in pairs_if_any(index, queries, "checkpoint")]
        tuned = [self._values(part_of(state, f"tuned:{name}"), one, asked) for name, one, asked in checkpoints or [("", index, queries)]]
        base, asked = pairs(index, queries, "base")[0]
        values_QN = np.mean(tuned, axis=0) - self._values(part_of(state, "base"), base.index, asked)
        return make_scores(self, values_QN, index, queries, checkpoints=[name for name, _, _ in checkpoints])

    def _inner(self) -> Method:
        own = {method.name: method for method in (GradCos(), GradDot())}
        return own[self.inner] if isinstance(self.inner, str) and self.inner in own else influence(self.inner)

    def _values(self, state: State, index: Index, queries: Index) -> np.ndarray:
        return self._inner().score(state, index, queries).values_QN
