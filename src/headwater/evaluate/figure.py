"""A number with its interval, and what was resampled for it. B resamples · Q queries · N training rows or trials"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, t

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """`value` with its 95 % interval; `over` names the sampling unit (what another sample would draw anew), `n` counts it.

    NaN and None: undefined here, as AUROC is for a query none of whose class is among the rows. `interval` is None where n is too small.
    """

    value: float
    interval: tuple[float, float] | None
    n: int
    over: str

    def to_json(self, name: str) -> dict[str, Any]:
        """`NAME` and `NAME_interval`; what JSON has no number for is null."""
        known = self.interval is not None and all(map(math.isfinite, self.interval))
        return {name: finite(self.value), f"{name}_interval": list(self.interval) if self.interval is not None and known else None}

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "undefined"
        return f"{self.value:.3g}" if self.interval is None else f"{self.value:.3g} [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def mean_figure(values_Q: np.ndarray, *, over: str = "queries", seed: int = 0) -> Figure:
    """The mean of a value per query, with an expanded percentile bootstrap over queries. NaN is undefined and left out, and `n` says so.

    Cost: 2000 Q multiplications.
    """
    known_Q = values_Q[np.isfinite(values_Q)]
    if len(known_Q) < 2:
        return Figure(float(known_Q.mean()) if len(known_Q) else math.nan, None, len(known_Q), over)
    means_B = weights(len(known_Q), seed=seed) @ known_Q / len(known_Q)
    return Figure(float(known_Q.mean()), percentiles(means_B, len(known_Q)), len(known_Q), over)


def proportion_figure(count: int, n: int, *, over: str = "queries") -> Figure:
    """`count / n` with Wilson's score interval: unlike a bootstrap it has a width where all trials agree."""
    if n == 0:
        return Figure(math.nan, None, 0, over)
    found = binomtest(int(count), int(n)).proportion_ci(LEVEL, method="wilson")
    return Figure(count / n, (float(found.low), float(found.high)), n, over)


def jackknife_figure(value: float, leave_one_out_Q: np.ndarray, *, over: str = "queries") -> Figure:
    """`value` with Student's interval from its values without each unit: `se^2 = (n - 1)/n sum (v_-q - mean)^2` (Tukey 1958).

    For what a bootstrap would bias: drawing a query twice makes hubs where there were none.
    """
    n = len(leave_one_out_Q)
    if n < 3 or not np.isfinite(leave_one_out_Q).all():
        return Figure(value, None, n, over)
    error = math.sqrt((n - 1) / n * float(((leave_one_out_Q - leave_one_out_Q.mean()) ** 2).sum()))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return Figure(value, (value - half, value + half), n, over)


@lru_cache(maxsize=16)
def weights(n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """[B, n] how often each of n units is drawn in each resample, read-only. The same seed draws the same: figures of a call are paired."""
    drawn_Bn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    drawn_Bn.flags.writeable = False
    return drawn_Bn


def percentiles(values_B: np.ndarray, n: int) -> tuple[float, float]:
    """The expanded percentile interval (Hesterberg 2015), at `Phi(-+ sqrt(n / (n - 1)) t_(n-1))`: a resample spreads too little."""
    tail = float(norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf((1 + LEVEL) / 2, n - 1)))
    low, high = np.quantile(values_B, [tail, 1 - tail])
    return float(low), float(high)
