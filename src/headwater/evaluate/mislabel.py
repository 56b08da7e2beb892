"""Do the wrong rows have the highest suspicion? N training rows, of which P are wrong and M are not"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata, t

from headwater.evaluate.figure import LEVEL, Figure, proportion_figure
from headwater.types import DataError, UsageError


def mislabel_auc(suspicion_N: np.ndarray, wrong_N: np.ndarray) -> Figure:
    """P(a wrong row is more suspect than a right one) + P(tie) / 2, its interval by DeLong et al. 1988 on the logit scale, over rows.

    `suspicion_N` is a self-influence or any score per row; rows without one (NaN) have no part. Cost: a sort. DataError unless there are
    rows of both kinds.
    """
    suspicion_N, wrong_N = _known(suspicion_N, wrong_N)
    wrong_P, right_M = suspicion_N[wrong_N], suspicion_N[~wrong_N]
    n_wrong, n_right = len(wrong_P), len(right_M)
    ranks_N = rankdata(suspicion_N)
    above_P = (ranks_N[wrong_N] - rankdata(wrong_P)) / n_right  # the share of right rows below each wrong one
    below_M = 1 - (ranks_N[~wrong_N] - rankdata(right_M)) / n_wrong
    value = float(above_P.mean())
    if min(n_wrong, n_right) < 2:
        return Figure(value, None, len(suspicion_N), "training rows")
    error = math.sqrt(above_P.var(ddof=1) / n_wrong + below_M.var(ddof=1) / n_right)
    return Figure(value, _logit_interval(value, error, min(n_wrong, n_right)), len(suspicion_N), "training rows")


def found_at(suspicion_N: np.ndarray, wrong_N: np.ndarray, share: float) -> Figure:
    """The share of the wrong rows among the most suspect `share` of all rows (rounded up): what checking that many rows would find.

    Wilson's interval over the wrong rows. A random order finds `share`.
    """
    if not 0 < share <= 1:
        raise UsageError(f"found at {share}, expected a share of the rows above 0 and up to 1")
    suspicion_N, wrong_N = _known(suspicion_N, wrong_N)
    checked = np.argsort(-suspicion_N, kind="stable")[: math.ceil(share * len(suspicion_N))]
    return proportion_figure(int(wrong_N[checked].sum()), int(wrong_N.sum()), over="wrong rows")


def _known(suspicion_N: np.ndarray, wrong_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known_N = np.isfinite(suspicion_N)
    wrong_N = np.asarray(wrong_N, dtype=bool)[known_N]
    if wrong_N.all() or not wrong_N.any():
        raise DataError(f"{int(wrong_N.sum())} of {len(wrong_N)} rows with a score are marked wrong, expected some of both kinds")
    return suspicion_N[known_N], wrong_N


def _logit_interval(value: float, error: float, n: int) -> tuple[float, float]:
    """A wide one at 0 and 1, where the error is 0: the rule of three."""
    if value in (0.0, 1.0):
        return (0.0, min(1.0, 3 / n)) if value == 0 else (max(0.0, 1 - 3 / n), 1.0)
    centre, half = math.log(value / (1 - value)), float(t.ppf((1 + LEVEL) / 2, n - 1)) * error / (value * (1 - value))
    return 1 / (1 + math.exp(half - centre)), 1 / (1 + math.exp(-half - centre))
