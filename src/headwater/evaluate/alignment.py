"""Do scores and labels (or a bank) stand in the same order of rows? Every cyclic shift and the reverse are tried at once.

Q queries · N training rows · C classes or designs

The statistic is `T = sum_qcn w_qc x_qn K_cn`: how far the scores x of query q favour the rows of K_c, where the query's class is c
(then w is 1), or where design c turned out well for the query (w is its standardised outcome). With the rows shifted by s it is a circular
cross-correlation over n, so all N shifts cost C Fourier transforms of length N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 200
CHANCE, FAR = 2.0, 6.0  # standard deviations of random orders; the largest of 2 N shifts is about 5 by chance for N = 100,000


@dataclass(frozen=True)
class Order:
    """z of the rows as they stand and of the best other order, against random permutations of the rows."""

    given: float
    best: float
    best_order: str

    @property
    def wrong(self) -> bool:
        """The order that is given is no better than chance, and another one is far better."""
        return self.given < CHANCE and self.best > FAR


def row_order(values_QN: np.ndarray, weight_QC: np.ndarray, member_CN: np.ndarray, *, seed: int = 0) -> Order:
    """Scores (or their ranks), who should favour what, and which rows those are. Cost: Q N C, and 2 C transforms of length N."""
    centred_QN = values_QN - values_QN.mean(1, keepdims=True)
    spread_Q = np.sqrt((centred_QN**2).mean(1, keepdims=True))
    favoured_CN = weight_QC.T @ (centred_QN / np.where(spread_Q > 0, spread_Q, 1.0))
    member_CN = member_CN - member_CN.mean(1, keepdims=True)
    rng = np.random.default_rng(seed)
    random_P = np.array([(favoured_CN * member_CN[:, rng.permutation(member_CN.shape[1])]).sum() for _ in range(PERMUTATIONS)])
    spread = float(random_P.std()) or 1.0
    shifted_N, reversed_N = _shifts(favoured_CN, member_CN) / spread, _shifts(favoured_CN, member_CN[:, ::-1]) / spread
    ways = {
        **{f"shifted by {s}": z for s, z in enumerate(shifted_N) if s},
        **{f"reversed and shifted by {s}": z for s, z in enumerate(reversed_N)},
    }
    best = max(ways, key=lambda way: ways[way], default="")
    return Order(float(shifted_N[0]), float(ways.get(best, -np.inf)), best.removesuffix(" and shifted by 0"))


def _shifts(one_CN: np.ndarray, other_CN: np.ndarray) -> np.ndarray:
    """[N] `sum_cn one_cn other_c,(n + s)` for every s."""
    spectrum = np.fft.rfft(other_CN, axis=1) * np.fft.rfft(one_CN, axis=1).conj()
    return np.fft.irfft(spectrum.sum(0), n=one_CN.shape[1])
