"""The strongest proponents and opponents of one query.

N training rows · k how many are asked for
"""

from __future__ import annotations

import numpy as np


def proponents(values_N: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest positive scores, best first. Fewer where fewer are positive: a short list is an answer."""
    return _lowest(-values_N, k)


def opponents(values_N: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k lowest negative scores, the strongest opponent first."""
    return _lowest(values_N, k)


def _lowest(values_N: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k lowest numbers below 0 in order; equal ones in the order of the rows. NaN never ranks.

    Cost: O(N) to find the k-th, then a sort of what is not above it.
    """
    candidates = np.flatnonzero(values_N < 0)
    if k < len(candidates):
        kth = np.partition(values_N[candidates], k - 1)[k - 1] if k > 0 else -np.inf
        candidates = candidates[values_N[candidates] <= kth]
    return candidates[np.argsort(values_N[candidates], kind="stable")][: max(k, 0)]
