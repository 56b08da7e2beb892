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

Kind = Literal["spearman", "pearson", "slope"]

FEWEST = 4  # designs that a correlation and its jackknife need
CELLS = 200_000  # numbers of a block of queries: what the jackknife holds in memory at once, some ten times


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
    sides = [_with_and_without(side_QD, known_QD, kind) for side_QD in (x_QD, y_QD)]
    value_Q = _moments(sides[0][0], sides[1][0], known_QD, kind)
    others_QDD = known_QD[:, None, :] & ~np.eye(x_QD.shape[1], dtype=bool)
    without_QD = _moments(sides[0][1], sides[1][1], others_QDD, kind)
    value_Q = np.where(n_Q >= FEWEST, value_Q, np.nan)
    pseudo_QD = (n_Q * value_Q)[:, None] - (n_Q - 1)[:, None] * without_QD
    return value_Q, np.where(known_QD, pseudo_QD, np.nan)


def _with_and_without(x_QD: np.ndarray, known_QD: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """The values (or ranks) with all designs [Q, D], and with design d gone [Q, d, D].

    A rank falls by 1 for a smaller value that goes, by 1/2 for an equal one.
    """
    if kind != "spearman":
        centred_QD = np.where(known_QD, x_QD, 0.0)
        centred_QD = centred_QD - (centred_QD.sum(1) / np.maximum(known_QD.sum(1), 1))[:, None]
        return centred_QD, np.broadcast_to(centred_QD[:, None, :], (*x_QD.shape, x_QD.shape[1]))
    with np.errstate(invalid="ignore"):
        below_QDD = known_QD[:, :, None] * ((x_QD[:, :, None] < x_QD[:, None, :]) + 0.5 * (x_QD[:, :, None] == x_QD[:, None, :]))
    ranks_QD = below_QDD.sum(1)
    return ranks_QD, ranks_QD[:, None, :] - below_QDD


def _moments(x: np.ndarray, y: np.ndarray, used: np.ndarray, kind: Kind) -> np.ndarray:
    """Correlation or slope over the last axis, of what is used; NaN where a side does not vary."""
    n = np.maximum(used.sum(-1, keepdims=True), 1)
    x = np.where(used, x - np.where(used, x, 0.0).sum(-1, keepdims=True) / n, 0.0)
    y = np.where(used, y - np.where(used, y, 0.0).sum(-1, keepdims=True) / n, 0.0)
    xx, yy, xy = (x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)
    scale = xx if kind == "slope" else np.sqrt(xx * yy)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((xx > 0) & (yy > 0), xy / scale, np.nan)
