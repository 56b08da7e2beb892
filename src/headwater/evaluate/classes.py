"""The paper's accuracy and cover: is what scores highest of the query's class? Q queries · N training rows · K places"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwater.evaluate.figure import Figure, mean_figure, proportion_figure
from headwater.evaluate.ranking import Ranking
from headwater.types import UsageError


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """The class of every training row and of every query, as text."""

    train_N: np.ndarray
    query_Q: np.ndarray

    @property
    def same_QN(self) -> np.ndarray:
        return self.query_Q[:, None] == self.train_N[None]

    @property
    def classes(self) -> np.ndarray:
        return np.unique(self.train_N)


def places(labels: ClassLabels, k: int | None = None) -> int:
    """The paper's c: `int(n_train / number of distinct training labels)`, unless k is given. UsageError outside 1 to N."""
    n_train = len(labels.train_N)
    k = int(n_train / len(labels.classes)) if k is None else k
    if not 1 <= k <= n_train:
        raise UsageError(f"k is {k}, expected 1 to {n_train}: the number of first rows that are looked at, of {n_train} training rows")
    return k


def accuracy_Q(ranking: Ranking, labels: ClassLabels) -> np.ndarray:
    """1 where the first row is of the query's class, else 0; NaN for a query that ranks nothing."""
    first_Q = ranking.in_order(labels.same_QN)[:, 0]
    return np.where(ranking.usable_Q, first_Q, np.nan)


def cover_Q(ranking: Ranking, labels: ClassLabels, k: int) -> np.ndarray:
    """`#{first k rows of the query's class} / k`: its mean over queries is the paper's cover."""
    found_Q = ranking.in_order(labels.same_QN)[:, :k].sum(1)
    return np.where(ranking.usable_Q, found_Q / k, np.nan)


def accuracy(ranking: Ranking, labels: ClassLabels) -> Figure:
    """The share of queries whose first row is of their class (Li et al. 2024, `check_acc_cov`), with Wilson's interval over queries."""
    hits_Q = accuracy_Q(ranking, labels)
    return proportion_figure(int(np.nansum(hits_Q)), int(np.isfinite(hits_Q).sum()))


def cover(ranking: Ranking, labels: ClassLabels, k: int) -> Figure:
    """The share of the query's class among its first k rows, mean over queries (ibid.). At most (size of the class) / k."""
    return mean_figure(cover_Q(ranking, labels, k))
