"""The class of a query as what should be found: AUROC, average precision, recall, reciprocal rank. Q queries · N training rows

Relevant are the training rows of the query's class. Every function gives a value per query, NaN where it is undefined: a query that ranks
nothing, or none or all of whose rows are relevant. A relevant row without a score is never found, and counts as missed.
"""

from __future__ import annotations

import numpy as np

from headwater.evaluate.ranking import Ranking


def auroc_Q(ranking: Ranking, relevant_QN: np.ndarray) -> np.ndarray:
    """P(a relevant row scores above another) + P(they tie) / 2, over the rows that have a score. Cost: a sort."""
    relevant_QN = relevant_QN & ranking.known_QN
    n_Q = relevant_QN.sum(1)
    others_Q = ranking.known_QN.sum(1) - n_Q
    sums_Q = np.where(relevant_QN, ranking.ranks_QN, 0.0).sum(1)
    return _divide(sums_Q - n_Q * (n_Q + 1) / 2, n_Q * others_Q, ranking.usable_Q)


def average_precision_Q(ranking: Ranking, relevant_QN: np.ndarray) -> np.ndarray:
    """`sum_i (R_i - R_(i-1)) P_i` over the distinct scores, as scikit-learn's: rows that tie share the precision at their last."""
    found_QN = ranking.in_order(relevant_QN)
    precision_QN = found_QN.cumsum(1) / np.arange(1, found_QN.shape[1] + 1)
    sums_Q = (found_QN * np.take_along_axis(precision_QN, _last_of_ties(ranking.sorted_QN), axis=1)).sum(1)
    return _divide(sums_Q, relevant_QN.sum(1), ranking.usable_Q)


def recall_Q(ranking: Ranking, relevant_QN: np.ndarray, k: int) -> np.ndarray:
    """Recall at k as information retrieval has it: `#{relevant among the first k} / #relevant`. With k < #relevant it cannot reach 1."""
    return _divide(ranking.in_order(relevant_QN)[:, :k].sum(1), relevant_QN.sum(1), ranking.usable_Q)


def hit_Q(ranking: Ranking, relevant_QN: np.ndarray, k: int) -> np.ndarray:
    """Recall at k as fact tracing has it (a hit rate): 1 where *any* of the first k is relevant, else 0."""
    return _divide(ranking.in_order(relevant_QN)[:, :k].any(1).astype(float), (relevant_QN.sum(1) > 0).astype(int), ranking.usable_Q)


def reciprocal_rank_Q(ranking: Ranking, relevant_QN: np.ndarray) -> np.ndarray:
    """1 / the place of the first relevant row; 0 where it has no score."""
    found_QN = ranking.in_order(relevant_QN)
    values_Q = np.where(found_QN.any(1), 1 / (1 + found_QN.argmax(1)), 0.0)
    return _divide(values_Q, (relevant_QN.sum(1) > 0).astype(int), ranking.usable_Q)


def _last_of_ties(sorted_QN: np.ndarray) -> np.ndarray:
    """[Q, N] for each place, the last place with the same score."""
    n = sorted_QN.shape[1]
    is_last_QN = np.ones(sorted_QN.shape, dtype=bool)
    is_last_QN[:, :-1] = sorted_QN[:, :-1] != sorted_QN[:, 1:]
    ends_QN = np.where(is_last_QN, np.arange(n), n)
    return np.minimum.accumulate(ends_QN[:, ::-1], axis=1)[:, ::-1]


def _divide(sums_Q: np.ndarray, counts_Q: np.ndarray, usable_Q: np.ndarray) -> np.ndarray:
    return np.where(usable_Q & (counts_Q > 0), sums_Q / np.maximum(counts_Q, 1), np.nan)
