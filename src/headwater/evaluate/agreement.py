"""Correlation over designs, a value per query, with the jackknife that its two-way interval rests on.

D designs (subsets) · Q queries

Every figure here is the mean over queries of a correlation over designs. Its jackknife pseudo-values make a table
`P_dq = D_q r_q - (D_q - 1) r_q(without d)`, whose mean over designs is r_q without its first-order bias: from here on an interval is
that of the mean of a table with two crossed samples, designs and queries (`two_way.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import rankdata

Kind = Literal["spearman", "pearson", "slope"]

FEWEST = 4  # designs that a correlation and its jackknife need
CELLS = 200_000  # numbers that the jackknife holds in memory at once, some ten times


@dataclass(frozen=True, eq=False)
class Table:
    """`value_Q` is each query's figure, NaN where it is undefined; `pseudo_DQ` its pseudo-values, NaN where not measured."""

    value_Q: np.ndarray
    pseudo_DQ: np.ndarray

    @property
    def value(self) -> float:
        """The mean over the queries for which it is defined."""
        known_Q = np.isfinite(self.value_Q)
        return float(self.value_Q[known_Q].mean()) if known_Q.any() else float("nan")

    def minus(self, other: Table) -> Table:
        """The paired difference, query by query and design by design."""
        return Table(self.value_Q - other.value_Q, self.pseudo_DQ - other.pseudo_DQ)


def agreement(predicted_DQ: np.ndarray, outcome_DQ: np.ndarray, *, kind: Kind) -> Table:
    """Spearman's or Pearson's correlation, or the slope of the outcome on the prediction, over designs and for each query.

    NaN in either table: that design is left out for that query. Undefined (NaN): fewer than 4 designs, or a side that does not vary. The
    slope of a calibrated prediction is 1. Cost: Q D^2.
    """
    n_designs, n_queries = predicted_DQ.shape
    at_once = max(1, CELLS // n_designs**2)
    blocks = [_block(predicted_DQ[:, q : q + at_once].T, outcome_DQ[:, q : q + at_once].T, kind) for q in range(0, n_queries, at_once)]
    return Table(np.concatenate([value_Q for value_Q, _ in blocks]), np.concatenate([pseudo_QD for _, pseudo_QD in blocks]).T)


def _block(x_QD: np.ndarray, y_QD: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Values [Q] and pseudo-values [Q, D] of some queries."""
    known_QD = np.isfinite(x_QD) & np.isfinite(y_QD)
    n_Q = known_QD.sum(1)
    x_QD, y_QD = np.where(known_QD, x_QD, np.nan), np.where(known_QD, y_QD, np.nan)
    value_Q = _moments(_whole(x_QD, kind), _whole(y_QD, kind), known_QD, kind)
    value_Q = np.where(n_Q >= FEWEST, value_Q, np.nan)
    n_designs = x_QD.shape[1]
    at_once = max(1, CELLS // (len(x_QD) * n_designs))
    parts = [np.arange(d, min(d + at_once, n_designs)) for d in range(0, n_designs, at_once)]
    without_QD = np.concatenate([_without(x_QD, y_QD, gone, kind) for gone in parts], axis=1)
    pseudo_QD = (n_Q * value_Q)[:, None] - (n_Q - 1)[:, None] * without_QD
    return value_Q, np.where(known_QD, pseudo_QD, np.nan)


def _whole(side_QD: np.ndarray, kind: Kind) -> np.ndarray:
    """The values, or their ranks; what is NaN ranks last, and is not used."""
    return rankdata(np.where(np.isnan(side_QD), np.inf, side_QD), axis=1) if kind == "spearman" else side_QD


def _without(x_QD: np.ndarray, y_QD: np.ndarray, gone: np.ndarray, kind: Kind) -> np.ndarray:
    """[Q, len(gone)] the figure without each of these designs in turn."""
    used_QGD = ~np.isnan(x_QD)[:, None, :] & (np.arange(x_QD.shape[1]) != gone[:, None])
    return _moments(_less(x_QD, gone, kind), _less(y_QD, gone, kind), used_QGD, kind)


def _less(side_QD: np.ndarray, gone: np.ndarray, kind: Kind) -> np.ndarray:
    """[Q, G, D] values or ranks once a design is gone: a rank falls by 1 for a smaller value that goes, by 1/2 for an equal one."""
    whole_QD = _whole(side_QD, kind)[:, None, :]
    if kind != "spearman":
        return whole_QD
    gone_QG, all_QD = side_QD[:, gone, None], side_QD[:, None, :]
    return whole_QD - (gone_QG < all_QD) - 0.5 * (gone_QG == all_QD)


def _moments(x: np.ndarray, y: np.ndarray, used: np.ndarray, kind: Kind) -> np.ndarray:
    """Correlation or slope over the last axis, of what is used; NaN where a side does not vary."""
    n = np.maximum(used.sum(-1, keepdims=True), 1)
    x = np.where(used, x - np.where(used, x, 0.0).sum(-1, keepdims=True) / n, 0.0)
    y = np.where(used, y - np.where(used, y, 0.0).sum(-1, keepdims=True) / n, 0.0)
    xx, yy, xy = (x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)
    scale = xx if kind == "slope" else np.sqrt(xx * yy)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((xx > 0) & (yy > 0), xy / scale, np.nan)
