"""A control: the row's length. A method that ranks like this one has found long rows."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.methods.shared import check, make_scores, same_for_every_query
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class Length:
    """`score(q, n)` = the row's number of tokens, the same for every query. No unit: it ranks. Cost: none."""

    name = "length"
    unit = None
    requires = frozenset[str]()
    columns = frozenset({"n_tokens"})
    summary = "control: the row's number of tokens, whatever the query"
    reference = "control"
    cost = "none"

    def fit(self, index: Index) -> State:
        return {}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, same_for_every_query(index.column("n_tokens"), queries), index, queries)
