"""Whether an effect of retraining stands out from what another seed does: without that there is no verdict. S seeds · Q queries"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.types import UsageError

ENOUGH = 2.0  # of signal over noise: below it nothing is said of an effect (Basu, Pope and Feizi 2021, as Headwater reads them)
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class NoiseFloor:
    """`ratio_Q = |mean over seeds| / sd over seeds`, its interval [Q, 2], and the number of seeds that each query has.

    NaN where fewer than two seeds were measured; infinite where all seeds agree on an effect, 0 where they agree on none.
    """

    ratio_Q: np.ndarray
    interval_Q2: np.ndarray
    n_Q: np.ndarray

    @property
    def known_Q(self) -> np.ndarray:
        """Whether noise was measured at all."""
        return ~np.isnan(self.ratio_Q)

    def clear_Q(self, enough: float = ENOUGH) -> np.ndarray:
        """Whether the signal is at least `enough` times the noise: only then may a verdict be given. False where nothing is known."""
        return self.known_Q & (self.ratio_Q >= enough)


def noise_floor(effects_SQ: np.ndarray) -> NoiseFloor:
    """Signal over the noise between seeds, for each query: `|mean_s e_sq| / sd_s e_sq`, sd with n - 1.

    `effects_SQ` are effects of one removal under several seeds, in the measure's unit; NaN where a training diverged, which has no part.
    The ratio is that of a single training. Its interval (95 %) is exact for normal effects: `mean sqrt(n) / sd` is a non-central t, whose
    non-centrality is inverted at both ends (Hedges and Olkin 1985, chapter 5.B); the ends are in size, so the lower one is 0 where the sign
    of the effect is not sure. Raises UsageError unless effects are [seeds, queries]. Cost: two roots a query.
    """
    effects_SQ = np.asarray(effects_SQ, dtype=np.float64)
    if effects_SQ.ndim != 2:
        raise UsageError(f"effects are {effects_SQ.shape}, expected [seeds, queries]: a line for each training seed")
    found = [_of_query(effects_S[np.isfinite(effects_S)]) for effects_S in effects_SQ.T]
    ratios, lows, highs, counts = (np.array(column) for column in zip(*found, strict=True)) if found else (np.empty(0),) * 4
    return NoiseFloor(ratios, np.stack([lows, highs], axis=1), counts.astype(int))


def _of_query(effects_S: np.ndarray) -> tuple[float, float, float, int]:
    n = len(effects_S)
    if n < 2:
        return math.nan, math.nan, math.nan, n
    mean, spread = abs(float(effects_S.mean())), float(effects_S.std(ddof=1))
    if spread <= 1e-12 * mean:
        same = math.inf if mean > 0 else 0.0
        return same, same, same, n
    return mean / spread, *_interval(mean / spread, n), n


def _interval(ratio: float, n: int) -> tuple[float, float]:
    """Of a standardised mean: the non-centralities under which the t that was seen is at the 97.5th and at the 2.5th percentile."""
    from scipy.optimize import brentq
    from scipy.stats import nct

    t, tail, root = ratio * math.sqrt(n), (1 - LEVEL) / 2, math.sqrt(n)

    def centre(p: float, low: float, high: float) -> float:
        found: Any = brentq(lambda shift: nct.cdf(t, n - 1, shift) - p, low, high)
        return float(found) / root

    reach = 10 + 10 * t
    low = centre(1 - tail, 0.0, reach) if nct.cdf(t, n - 1, 0.0) > 1 - tail else 0.0
    return low, centre(tail, 0.0, reach) if nct.cdf(t, n - 1, 0.0) > tail else 0.0
