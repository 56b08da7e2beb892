"""FastIF: influence on a few candidates of each query only, the queries solved side by side.

Q queries · N training rows · C candidates of any query · D numbers of a gradient
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.curvature import Curvature
from headwater.curvature.parallel import shared_out
from headwater.curvature.recommend import Recommendation, recommend
from headwater.methods.candidates import By, Recall, pick, recall, stage
from headwater.methods.influence import Influence, Mode, joined
from headwater.methods.self_influence import influence
from headwater.methods.shared import check, check_rows, live, make_scores, part_of, prefixed
from headwater.types import Index, Scores, Solve, State, UsageError

SHARE = 0.1  # of the rows, where neither k nor share is given
TOGETHER = 4  # queries of one solve, whatever the number of workers: so that this decides no number
RECALL_QUERIES = 32  # whose full scores are computed to see what the candidates leave out
ROWS = 256  # candidates whose gradients are held at once


@dataclass(frozen=True)
class FastIF:
    """`score(q, n) = -(1/N) h_q' (C + lambda)^-1 g_n` in nats for the candidates of a query; NaN, not looked at, for every other row.

    Guo et al. 2021. The candidates are the `k` rows (or `share` of the rows; a tenth where neither is given) that the first stage `by` puts
    first: nearest in a representation ("representation_response", "representation"), sharing rare words ("idf", Grosse et al. 2023,
    eq. 28-29), or BM25. `curvature` is a name, a mapping with name and options, or a curvature; `mode` as in `Influence`: in "exact" the
    whole gradients of candidates alone are computed. `workers` processes solve the queries. What the candidates lose is measured on up to
    32 of the queries: the provenance has their recall of the full scores' first `recall_at` rows, over the stored rows, and its interval.

    Cost: the first stage; a solve for every query, over the workers; C D multiplications for each. `recommend` says which settings of LiSSA
    these rows need. Raises UsageError for options that do not fit together.
    """

    k: int | None = None
    share: float | None = None
    by: By = "representation_response"
    curvature: str | Mapping[str, Any] | Curvature = "lissa"
    mode: Mode = "stored"
    workers: int = 1
    recall_at: int = 10

    name = "fastif"
    unit = "nats"
    summary = "influence on a few candidates of each query, with the recall that they have"
    reference = "Guo et al. 2021, arXiv 2012.15781"
    cost = "a scan of the representations or texts; a solve for every query, in parallel; candidates' gradients only"

    def __post_init__(self) -> None:
        _ = self._influence, stage(self.by)
        if self.k is not None and self.share is not None:
            raise UsageError(f"fastif: k is {self.k} and share is {self.share}; give one of the two")
        if self.k is not None and self.k < 1:
            raise UsageError(f"fastif: k is {self.k}, expected 1 or more rows for each query")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"fastif: share is {self.share}, expected above 0 and at most 1: the part of the rows that is looked at")
        for name in ("workers", "recall_at"):
            if getattr(self, name) < 1:
                raise UsageError(f"fastif: {name} is {getattr(self, name)}, expected 1 or more")

    @property
    def requires(self) -> frozenset[str]:
        return self._influence.requires | stage(self.by).requires | {"gradient"}

    @property
    def columns(self) -> frozenset[str]:
        return getattr(stage(self.by), "columns", frozenset())

    def fit(self, index: Index) -> State:
        return {**self._influence.fit(index), **prefixed("stage", stage(self.by).fit(index))}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        picked_QN = self.candidates(state, index, queries)
        solve = self._solve(state, index, queries)
        values_QN = self._products(index, solve.value, picked_QN) / -len(index)
        found = self._recall(index, solve.value, picked_QN)
        notes = [
            f"{self.name}: {self._looked_at(picked_QN)}; {found or 'no query has a score, so nothing is known of what they leave out'}"
        ]
        facts = {"looked_at": float(picked_QN.mean()), "recall": None if found is None else found.to_json()}
        return make_scores(self, values_QN, index, queries, **self._influence.provenance(state, solve), candidates=facts, notes=notes)

    def candidates(self, state: State, index: Index, queries: Index) -> np.ndarray:
        """[Q, N] true where a row is a candidate of the query."""
        k = self.k if self.k is not None else round((self.share or SHARE) * len(index))
        first = stage(self.by)
        of_stage = part_of(state, "stage") if any(name.startswith("stage/") for name in state) else {}
        return pick(first.score(of_stage, index, queries), min(max(k, 1), len(index)))

    def recommend(self, index: Index) -> Recommendation:
        """LiSSA's settings for these rows, measured: `replace(method, curvature=method.recommend(index).lissa)`."""
        return recommend(self._influence.source(index))

    @property
    def _influence(self) -> Influence:
        return influence(self.curvature, self.mode)

    def _looked_at(self, picked_QN: np.ndarray) -> str:
        least, most = (int(edge) for edge in (picked_QN.sum(1).min(initial=picked_QN.shape[1]), picked_QN.sum(1).max(initial=0)))
        many = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return f"{many} of {picked_QN.shape[1]:,} rows looked at for each query (first by {self.by}), the others have no score"

    def _solve(self, state: State, index: Index, queries: Index) -> Solve:
        groups = [np.arange(start, min(start + TOGETHER, len(queries))) for start in range(0, len(queries), TOGETHER)]
        inner = self._influence
        solves = shared_out([partial(_solve_group, inner, state, index, queries, group) for group in groups], workers=self.workers)
        value_QD = torch.cat([solve.value for solve in solves]) if solves else torch.empty(0, index.layout.size)
        return joined([replace(solve, value=torch.empty(0)) for solve in solves], value_QD)

    def _products(self, index: Index, x_QD: Tensor, picked_QN: np.ndarray) -> Tensor:
        """[Q, N] with each row that is some query's candidate; a row's products with other queries are not kept."""
        feature = "gradient_whole" if self.mode == "exact" else "gradient"
        values_QN = torch.full(picked_QN.shape, torch.nan)
        wanted = np.flatnonzero(picked_QN.any(0))
        for some in np.split(wanted, range(ROWS, len(wanted), ROWS)):
            if len(some):
                values_QN[:, some] = x_QD.float() @ index.take(feature, some).float().T
        return values_QN.masked_fill_(torch.from_numpy(~picked_QN), torch.nan)

    def _recall(self, index: Index, x_QD: Tensor, picked_QN: np.ndarray) -> Recall | None:
        """Against the full scan of the stored rows, by the same solved queries, for queries from all over the list."""
        sample = np.unique(np.linspace(0, len(x_QD) - 1, min(RECALL_QUERIES, len(x_QD))).round().astype(int)) if len(x_QD) else []
        x_QD = x_QD[sample].float()
        stored_QD = live(index).sketch(x_QD) if self.mode == "exact" else x_QD
        full_QN = (index.products("gradient", stored_QD) / -len(index)).numpy()
        return recall(full_QN, picked_QN[sample], at=self.recall_at)


def _solve_group(method: Influence, state: State, index: Index, queries: Index, group: np.ndarray) -> Solve:
    """Where the queries' gradients are computed when they are taken, the worker does it."""
    return method.solve_some(state, index, queries.take(method.feature, group))
