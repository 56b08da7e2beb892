"""What two score matrices agree on. Q queries · N training rows · K places"""

from __future__ import annotations

import numpy as np

from headwater.evaluate.ranking import Ranking
from headwater.types import DataError, Scores


def overlap_Q(ranking: Ranking, other: Ranking, k: int) -> np.ndarray:
    """`#(first k of one and of the other) / k` for each query; NaN where either ranks nothing. Chance is about k / N."""
    listed_QN, other_QN = (_listed(one, k) for one in (ranking, other))
    return np.where(ranking.usable_Q & other.usable_Q, (listed_QN & other_QN).sum(1) / k, np.nan)


def rank_correlation_Q(ranking: Ranking, other: Ranking) -> np.ndarray:
    """Spearman's correlation of each query's scores, over the rows that both have a score for; NaN where either ranks nothing."""
    both_QN = ranking.known_QN & other.known_QN
    shared = (Ranking(np.where(both_QN, one.values_QN, np.nan)) for one in (ranking, other))
    x_QN, y_QN = (np.where(both_QN, one.ranks_QN - _row_means(one.ranks_QN), 0.0) for one in shared)
    sizes_Q = np.sqrt((x_QN**2).sum(1) * (y_QN**2).sum(1))
    return np.where(sizes_Q > 0, (x_QN * y_QN).sum(1) / np.where(sizes_Q > 0, sizes_Q, 1.0), np.nan)


def check_same(scores: Scores, other: Scores) -> None:
    """Raise DataError unless both matrices speak of the same queries and rows, in the same order."""
    for what, ours, theirs in (("queries", scores.query_ids, other.query_ids), ("rows", scores.train_ids, other.train_ids)):
        if len(ours) != len(theirs):
            raise DataError(f"the scores are of {len(ours)} {what}, those to compare with of {len(theirs)}: expected the same {what}")
        both_named = "positions" not in (scores.provenance.get("ids"), other.provenance.get("ids"))
        if both_named and ours != theirs:
            raise DataError(
                f"the {what} of the two score matrices have other ids or another order: trace both on the same index and queries"
            )


def _row_means(values_QN: np.ndarray) -> np.ndarray:
    """[Q, 1] over what is known; 0 where nothing is."""
    known_QN = np.isfinite(values_QN)
    return (np.where(known_QN, values_QN, 0.0).sum(1) / np.maximum(known_QN.sum(1), 1))[:, None]


def _listed(ranking: Ranking, k: int) -> np.ndarray:
    top_QK = ranking.top_QK(k)
    n_queries, n_rows = ranking.values_QN.shape
    listed = np.zeros((n_queries, n_rows + 1), dtype=bool)  # one place more, which takes the -1 of a query with fewer than k scores
    np.put_along_axis(listed, np.where(top_QK < 0, n_rows, top_QK), True, axis=1)
    return listed[:, :n_rows]
