"""Scores of groups of rows: a source, a label, a cluster of near-duplicates. One of fifty copies matters little, the fifty may matter.

Q queries · N training rows · G groups · D stored numbers of a gradient row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headwater.rank.errors import dot_errors
from headwater.rank.groups import clusters
from headwater.types import Index, Scores, UsageError

if TYPE_CHECKING:
    import pandas as pd

NEAR_DUPLICATES = "near_duplicates"


@dataclass(frozen=True, eq=False)
class GroupScores:
    """`values_QG[q, g]`: the predicted change of query q's measure if every row of group g were trained on once more, to first order.

    Rows without a score (NaN) are left out of the sum and counted in `n_unscored_G`; a group of nothing else is NaN. `first_ids` names the
    first row of each group. `standard_errors_QG` is the sketch's, None where it is not known: rows share their sketch, so the errors of
    rows cannot be added up, neither as they are nor in quadrature.
    """

    values_QG: np.ndarray
    groups: tuple[str, ...]
    first_ids: tuple[str, ...]
    n_rows_G: np.ndarray
    n_unscored_G: np.ndarray
    query_ids: tuple[str, ...]
    by: str
    method: str
    unit: str | None
    standard_errors_QG: np.ndarray | None = None

    def to_pandas(self) -> pd.DataFrame:
        """One line for each query and group, best first within a query, NaN last."""
        import pandas as pd

        lines = [
            (query, *line)
            for query, values_G, errors_G in zip(self.query_ids, self.values_QG, self._errors(), strict=True)
            for line in self._lines(values_G, errors_G)
        ]
        columns: Any = ["query", self.by, "first_id", "n_rows", "n_unscored", "score", "standard_error"]
        return pd.DataFrame(lines, columns=columns).assign(method=self.method, unit=self.unit)

    def _lines(self, values_G: np.ndarray, errors_G: np.ndarray) -> list[tuple[Any, ...]]:
        order = np.argsort(-np.nan_to_num(values_G, nan=-np.inf), kind="stable").tolist()
        counts = list(zip(self.n_rows_G.tolist(), self.n_unscored_G.tolist(), strict=True))
        return [(self.groups[g], self.first_ids[g], *counts[g], float(values_G[g]), float(errors_G[g])) for g in order]

    def _errors(self) -> np.ndarray:
        return np.full(self.values_QG.shape, np.nan) if self.standard_errors_QG is None else self.standard_errors_QG


def group_scores(scores: Scores, index: Index, *, by: str = "group", queries: Index | None = None) -> GroupScores:
    """Sums of scores over the rows of each group: by a column of the row table (group, source, label, ...) or by "near_duplicates".

    A sum of predicted changes is the predicted change of them all; so `scores` must predict a change. With `queries`, whose gradients
    are at hand then, the errors of a plain gradient product are those of the product with the group's summed gradient, at the cost of one
    scan. Raises UsageError for a method that only ranks, and for one whose numbers are not about the query.
    """
    _check(scores)
    keys = row_keys(index, by)
    groups, first_G, group_of_N = _numbered(keys)
    values_QN, scored_QN = np.nan_to_num(scores.values_QN.astype(np.float64)), np.isfinite(scores.values_QN)
    values_QG, scored_QG = (_summed(part_QN, group_of_N, len(groups)) for part_QN in (values_QN, scored_QN.astype(np.float64)))
    n_rows_G = np.bincount(group_of_N, minlength=len(groups))
    return GroupScores(
        values_QG=np.where(scored_QG > 0, values_QG, np.nan),
        groups=groups,
        first_ids=tuple(scores.train_ids[i] for i in first_G),
        n_rows_G=n_rows_G,
        n_unscored_G=n_rows_G - scored_QG.max(0, initial=0.0).astype(int),
        query_ids=scores.query_ids,
        by=by,
        method=scores.method,
        unit=scores.unit,
        standard_errors_QG=None if queries is None else _errors(scores, index, queries, group_of_N, len(groups)),
    )


def row_keys(index: Index, by: str) -> list[str]:
    """[N] the group of each row. A row without a group stands alone; another column's missing value is a group of its own, ""."""
    if by == NEAR_DUPLICATES:
        prompts, responses = _texts(index.column("prompt")), _texts(index.column("response"))
        texts = [f"{prompt} {response}" for prompt, response in zip(prompts, responses, strict=True)]
        labels = clusters(_texts(index.column("group")), texts)
        firsts = {label: index.ids[i] for i, label in reversed(list(enumerate(labels)))}
        return [firsts[label] for label in labels]
    keys = _texts(index.column(by))
    return [key or row_id for key, row_id in zip(keys, index.ids, strict=True)] if by == "group" else keys


def adds_up(scores: Scores) -> bool:
    """Whether a sum over rows means something: the scores predict changes, all of the query's measure."""
    return scores.unit is not None and "measure" not in scores.provenance


def _check(scores: Scores) -> None:
    if adds_up(scores):
        return
    if scores.unit is None:
        raise UsageError(
            f"{scores.method} only ranks: its numbers have no unit, and a sum of them means nothing. Take the groups of a method in nats "
            "(grad_dot, an influence): `headwater methods` says which are."
        )
    raise UsageError(
        f"{scores.method} is about {scores.provenance['measure']}: a sum over rows would add up changes of different things. "
        "Take the groups of a method that scores rows for a query."
    )


def _texts(column: np.ndarray) -> list[str]:
    """A column's values as text, "" where one is missing; a whole number that stands beside missing ones (a label) as the number it is."""
    return [_text(value) for value in column.tolist()]


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _numbered(keys: Sequence[str]) -> tuple[tuple[str, ...], list[int], np.ndarray]:
    """(the groups in the order of their first rows, those rows, [N] each row's group)."""
    first = {key: i for i, key in reversed(list(enumerate(keys)))}
    groups = tuple(sorted(first, key=lambda key: first[key]))
    number = {key: g for g, key in enumerate(groups)}
    return groups, [first[key] for key in groups], np.array([number[key] for key in keys], dtype=np.int64)


def _summed(values_QN: np.ndarray, group_of_N: np.ndarray, n_groups: int) -> np.ndarray:
    """[Q, G] in float64."""
    rows = [np.bincount(group_of_N, weights=values_N, minlength=n_groups) for values_N in values_QN]
    return np.stack(rows) if rows else np.zeros((0, n_groups))


def _errors(scores: Scores, index: Index, queries: Index, group_of_N: np.ndarray, n_groups: int) -> np.ndarray | None:
    """[Q, G] of `-(1/N) h_q . (sum of the group's rows)`; None where the scores were not made in this way."""
    if (scores.provenance.get("kernel"), scores.provenance.get("feature")) != ("dot", "gradient"):
        return None
    summed_GD = _summed_rows(index, torch.from_numpy(group_of_N), n_groups)
    each = [queries.take("gradient", [q]) for q in range(len(queries))]
    return np.concatenate([dot_errors(index.layout, query_1D, summed_GD[None], n_rows=len(index)).numpy() for query_1D in each])


def _summed_rows(index: Index, group_of_N: Tensor, n_groups: int) -> Tensor:
    """[G, D] float64 sums of the groups' rows, bad ones left out. One scan; memory G D numbers."""
    summed_GD = torch.zeros(n_groups, index.layout.size, dtype=torch.float64)
    for start, rows_ND in index.blocks("gradient"):
        finite_N = torch.isfinite(rows_ND).all(1)
        summed_GD.index_add_(0, group_of_N[start : start + len(rows_ND)][finite_N], rows_ND[finite_N].double())
    return summed_GD
