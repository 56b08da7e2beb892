"""Scores put in order, once for every figure. Q queries · N training rows"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import rankdata


@dataclass(frozen=True, eq=False)
class Ranking:
    """The order of the rows for each query, best first; equal scores in the order of the rows; NaN never ranks.

    A query whose scores are all one number, or all NaN, ranks nothing: it is not `usable` and has no part in any figure.
    """

    values_QN: np.ndarray

    @cached_property
    def known_QN(self) -> np.ndarray:
        return ~np.isnan(self.values_QN)

    @cached_property
    def usable_Q(self) -> np.ndarray:
        high_Q = np.where(self.known_QN, self.values_QN, -np.inf).max(1)
        return self.known_QN.any(1) & (high_Q > np.where(self.known_QN, self.values_QN, np.inf).min(1))

    @cached_property
    def order_QN(self) -> np.ndarray:
        return np.argsort(-np.where(self.known_QN, self.values_QN, -np.inf), axis=1, kind="stable")

    @cached_property
    def sorted_QN(self) -> np.ndarray:
        return np.take_along_axis(self.values_QN, self.order_QN, axis=1)

    @cached_property
    def ranks_QN(self) -> np.ndarray:
        """1 for the smallest of a query's scores, the mean rank where they tie; NaN where there is no score."""
        return np.where(self.known_QN, rankdata(np.where(self.known_QN, self.values_QN, np.inf), axis=1), np.nan)

    def top_QK(self, k: int) -> np.ndarray:
        """[Q, k] positions of the first k rows; -1 where fewer have a score."""
        order_QK = self.order_QN[:, :k]
        return np.where(np.take_along_axis(self.known_QN, order_QK, axis=1), order_QK, -1)

    def in_order(self, of_QN: np.ndarray) -> np.ndarray:
        """[Q, N] bool facts about the rows, in each query's order; False for rows without a score."""
        return np.take_along_axis(of_QN & self.known_QN, self.order_QN, axis=1)
