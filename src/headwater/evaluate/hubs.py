"""Rows that are the answer to everything, and the correction for them. Q queries · N training rows · K places"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import skew

from headwater.evaluate.figure import Figure, jackknife_figure, proportion_figure
from headwater.evaluate.ranking import Ranking
from headwater.types import Scores, UsageError, with_values

FLAT = 1e-9  # a spread below this share of a column's scores is rounding: the row scores the same for every query


def hub_share(ranking: Ranking) -> tuple[Figure, int]:
    """The largest share of queries that have one and the same first row, and that row's position (-1 where no query ranks).

    Wilson's interval is that of this row's share. It was chosen for being the largest, so a fresh sample tends to lie lower.
    """
    firsts_Q = ranking.top_QK(1)[ranking.usable_Q, 0]
    if not len(firsts_Q):
        return proportion_figure(0, 0), -1
    rows, counts = np.unique(firsts_Q, return_counts=True)
    return proportion_figure(int(counts.max()), len(firsts_Q)), int(rows[counts.argmax()])


def occurrence_skewness(ranking: Ranking, k: int) -> Figure:
    """The skewness over rows of in how many queries' first k a row stands (Radovanovic et al. 2010), by the jackknife over queries.

    Near 0: every row has its turn. Above about 1: hubs take the places. Cost: Q N.
    """
    top_QK = ranking.top_QK(k)[ranking.usable_Q]
    n_rows = ranking.values_QN.shape[1]
    counts_N = _counts(top_QK, n_rows)
    without_Q = np.array([_skew(counts_N - _counts(top_K[None], n_rows)) for top_K in top_QK])
    return jackknife_figure(_skew(counts_N), without_Q)


def hub_corrected(scores: Scores) -> Scores:
    """`(s_qn - mean_q s_qn) / std_q s_qn`: each training column against itself over the queries. 0 where a column does not vary.

    A row of large gradient scores high for everything; after this it has to score high *for it*. The queries at hand are the reference, so
    one query's correction depends on the others. UsageError with fewer than 3 queries.
    """
    if len(scores.query_ids) < 3:
        raise UsageError(f"hub correction over {len(scores.query_ids)} queries, expected 3 or more: z needs a spread over queries")
    known_QN = ~np.isnan(scores.values_QN)
    n_N = np.maximum(known_QN.sum(0), 1)
    means_N = np.where(known_QN, scores.values_QN, 0).sum(0) / n_N
    deviations_QN = scores.values_QN - means_N
    spreads_N = np.sqrt((np.where(known_QN, deviations_QN, 0) ** 2).sum(0) / np.maximum(n_N - 1, 1))
    flat_N = spreads_N <= FLAT * np.abs(means_N)
    values_QN = np.where(known_QN & flat_N, 0.0, deviations_QN / np.where(flat_N, 1.0, spreads_N))
    return with_values(scores, values_QN, unit=None, provenance={**scores.provenance, "hub_correction": "z of each column over queries"})


def _counts(top_QK: np.ndarray, n_rows: int) -> np.ndarray:
    return np.bincount(top_QK[top_QK >= 0], minlength=n_rows)


def _skew(counts_N: np.ndarray) -> float:
    return float(skew(counts_N)) if len(counts_N) and np.ptp(counts_N) else 0.0 if len(counts_N) else math.nan
