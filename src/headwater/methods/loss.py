"""A control: the row's own loss. A method that ranks like this one has found rows that are hard."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, make_scores, same_for_every_query
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class Loss:
    """`score(q, n)` = the row's loss (sum over its loss tokens), the same for every query. No unit: it ranks. Cost: none."""

    name = "loss"
    unit = None
    requires = frozenset[str]()
    columns = frozenset({"loss"})
    summary = "control: the row's own loss, whatever the query"
    reference = "control"
    cost = "none"

    def fit(self, index: Index) -> State:
        return {}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, same_for_every_query(index.column("loss"), queries), index, queries)
