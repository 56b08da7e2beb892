"""An interval for the mean of a table whose rows (designs) and columns (queries) are both samples. B resamples · D designs · Q queries

All queries are measured on the same retrained models, so a figure moves with the designs that were drawn even where there are thousands of
queries; and with the queries, even where there are thousands of designs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from headwater.evaluate.agreement import FEWEST, Table
from headwater.evaluate.figure import LEVEL, RESAMPLES, Figure, mean_figure, weights

OVER = "subsets and queries"
INSIDE = 1 - 1e-9  # the largest correlation that atanh is taken of


@dataclass(frozen=True)
class Variances:
    """Of the table's mean: from drawing other designs, other queries, and what is left in each cell."""

    designs: float
    queries: float
    cells: float

    @property
    def total(self) -> float:
        """What another study would vary by: `V_designs + V_queries - V_cells` (Cameron, Gelbach and Miller 2011).

        The first two have the cells' noise in them, each once. Never below the larger of the two: a difference of estimates can be anything
        where all three are small.
        """
        return max(self.designs + self.queries - self.cells, self.designs, self.queries)


def variances(table: Table) -> Variances:
    """By the analysis of variance of the pseudo-values, over the designs and queries that were measured."""
    pseudo_DQ = measured(table)
    n_designs, n_queries = pseudo_DQ.shape
    mean = np.nanmean(pseudo_DQ)
    design_D, query_Q = np.nanmean(pseudo_DQ, axis=1), np.nanmean(pseudo_DQ, axis=0)
    cells_DQ = pseudo_DQ - design_D[:, None] - query_Q[None] + mean
    degrees = max((n_designs - 1) * (n_queries - 1), 1)
    return Variances(
        designs=float(design_D.var(ddof=1)) / n_designs,
        queries=float(query_Q.var(ddof=1)) / n_queries if n_queries > 1 else 0.0,
        cells=float(np.nansum(cells_DQ**2)) / degrees / (n_designs * n_queries),
    )


def two_way_figure(table: Table, *, seed: int = 0, correlation: bool = False) -> Figure:
    """The mean over queries, with a bootstrap that draws designs and queries anew.

    The plain two-way bootstrap counts the cells' noise three times (Owen 2007), so its deviations are scaled to the variance that
    `variances` finds, times Student's factor for the smaller of the two samples. A `correlation`'s deviations are taken on Fisher's
    scale, atanh, and stay within -1 and 1. `benchmarks/coverage.py` measures what this covers, beside the plain bootstrap and a
    query-only interval. The interval lies around the jackknife's estimate, which lacks the first-order bias of a correlation over few
    designs (Spearman's with 64 is about .006 too low where it is .37); the value is the plain mean, as everyone reports it, and the
    interval reaches to it where it would end before (near 1). With one query the interval is over designs alone. None with fewer than
    4 designs. Cost: 2000 D Q multiplications.
    """
    pseudo_DQ = measured(table)
    n_designs, n_queries = pseudo_DQ.shape
    over = f"{OVER} ({n_designs} x {n_queries})"
    if n_designs < FEWEST or n_queries < 1:
        return Figure(table.value, None, n_queries, over)
    centre = float(np.nanmean(pseudo_DQ))
    low, high = np.quantile(resampled_means(table, seed=seed) - centre, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    smaller = n_designs if n_queries == 1 else min(n_designs, n_queries)
    width = float(t.ppf((1 + LEVEL) / 2, smaller - 1)) * math.sqrt(variances(table).total)
    scale = 2 * width / (high - low) if high > low else 0.0
    low, high = _around(centre, low * scale, high * scale, correlation)
    return Figure(table.value, (min(low, table.value), max(high, table.value)), n_queries, over)


def _around(centre: float, low: float, high: float, correlation: bool) -> tuple[float, float]:
    if not correlation:
        return centre + low, centre + high
    inside = max(-INSIDE, min(INSIDE, centre))
    stretch = 1 / (1 - inside**2)
    return math.tanh(math.atanh(inside) + stretch * low), math.tanh(math.atanh(inside) + stretch * high)


def query_only(table: Table, *, seed: int = 0) -> Figure:
    """What a bootstrap over queries alone would say. Shown so that nobody has to guess how much too narrow it is."""
    return mean_figure(table.value_Q, seed=seed)


def measured(table: Table) -> np.ndarray:
    """[D, Q] without the designs and queries that have no value at all."""
    known_DQ = np.isfinite(table.pseudo_DQ)
    return np.where(known_DQ, table.pseudo_DQ, np.nan)[known_DQ.any(1)][:, known_DQ.any(0)]


def resampled_means(table: Table, *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """[B] means of the table with designs and queries drawn anew."""
    pseudo_DQ = measured(table)
    known_DQ = np.isfinite(pseudo_DQ)
    weights_BD = weights(pseudo_DQ.shape[0], resamples=resamples, seed=seed)
    weights_BQ = weights(pseudo_DQ.shape[1], resamples=resamples, seed=seed + 1)
    sums_B = ((weights_BD @ np.where(known_DQ, pseudo_DQ, 0.0)) * weights_BQ).sum(1)
    return sums_B / ((weights_BD @ known_DQ) * weights_BQ).sum(1)
