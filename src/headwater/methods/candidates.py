"""Which rows are worth a gradient product at all: a cheap first stage, and how much of the answer it loses, measured.

Q queries · N training rows · n rows of a block · H numbers of a representation · V words
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from headwater.methods.lexical import Lexical, fit_words, word_scores
from headwater.methods.shared import check, check_rows, make_scores, whole
from headwater.types import Index, Method, Scores, State, UsageError

By = Literal["representation_response", "representation", "idf", "bm25"]


def stage(by: By) -> Method:
    """The first stage of that name. Raises UsageError for one that there is not."""
    if by not in get_args(By):
        raise UsageError(f"candidates are picked by {by!r}, expected one of {', '.join(get_args(By))}")
    made: dict[By, Callable[[], Method]] = {"idf": SumIdf, "bm25": Lexical}
    return made[by]() if by in made else Nearest(by)


@dataclass(frozen=True)
class Nearest:
    """`-||r_q - r_n||^2`: nearest neighbours by a stored representation (Guo et al. 2021, section 3.1), by a scan, which is exact.

    Fit: nothing. Score: Q N H multiplications. NaN for a row or a query without a finite representation.
    """

    feature: str = "representation_response"

    name = "nearest"
    unit = None
    columns = frozenset[str]()

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({self.feature})

    def fit(self, index: Index) -> State:
        return {}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        r_QH = whole(queries, self.feature)
        blocks = [_minus_squared_distances(r_QH, rows_nH) for _, rows_nH in index.blocks(self.feature)]
        return make_scores(self, torch.cat(blocks, dim=1) if blocks else torch.empty(len(queries), 0), index, queries)


def _minus_squared_distances(r_QH: Tensor, rows_nH: Tensor) -> Tensor:
    """In float64: where all representations point one way, the distances are small differences of large numbers."""
    r_QH, rows_nH = r_QH.double(), rows_nH.double()
    return 2 * r_QH @ rows_nH.T - rows_nH.square().sum(1) - r_QH.square().sum(1, keepdim=True)


@dataclass(frozen=True)
class SumIdf:
    """`sum of IDF(t) over the words t of the query that the row has`, `IDF(t) = log((N - n_t + 0.5) / (n_t + 0.5) + 1)`.

    n_t of the N rows have t. A word that the query repeats counts as often; how often and in how long a text the row has it does not
    matter: the factor `(k1 + 1) 1 / (k1 + 1)` of the formula is 1. The first stage of Grosse et al. 2023 (eq. 28-29), over words in the
    place of tokens. As `Lexical` otherwise.
    """

    name = "idf"
    unit = None
    requires = frozenset[str]()
    columns = frozenset({"prompt", "response"})

    def fit(self, index: Index) -> State:
        return fit_words(index, "both", _idf_weights)

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        return make_scores(self, word_scores(state, index, queries, "both"), index, queries)


def _idf_weights(documents: list[list[str]], vocabulary: list[str]) -> dict[str, Tensor]:
    words = [set(document) for document in documents]
    rows_of: dict[str, list[int]] = {word: [] for word in vocabulary}
    for row, own in enumerate(words):
        for word in own:
            rows_of[word].append(row)
    counts_V = Counter(chain.from_iterable(words))
    idf_V = [math.log((len(words) - counts_V[word] + 0.5) / (counts_V[word] + 0.5) + 1) for word in vocabulary]
    sizes_V = torch.tensor([len(rows) for rows in rows_of.values()], dtype=torch.int64)
    return {
        "data": torch.tensor(idf_V, dtype=torch.float64).repeat_interleave(sizes_V),
        "rows_of": torch.tensor(list(chain.from_iterable(rows_of.values())), dtype=torch.int32),
        "starts": torch.cat([torch.zeros(1, dtype=torch.int64), sizes_V.cumsum(0)]),
    }


def pick(scores: Scores, k: int) -> np.ndarray:
    """[Q, N] true for the k rows of each query that the first stage puts first; equal ones in the order of the rows.

    A row without a finite score is never picked, nor is one that shares no word with the query where words decide: then fewer are.
    """
    values_QN = scores.values_QN
    possible_QN = np.isfinite(values_QN) & ((values_QN > 0) if scores.method in ("idf", "lexical") else True)
    order_QN = np.argsort(-np.where(possible_QN, values_QN, -np.inf), axis=1, kind="stable")[:, :k]
    picked_QN = np.zeros(values_QN.shape, dtype=bool)
    np.put_along_axis(picked_QN, order_QN, True, axis=1)
    return picked_QN & possible_QN


# --------------------------------------------------------------------------------------------------------- its recall


@dataclass(frozen=True)
class Recall:
    """The share of the full answer's first `at` rows that a first stage had picked: mean over `queries` queries, with a 95 % interval.

    `chance` is what as many rows drawn at random would hold.
    """

    value: float
    interval: tuple[float, float]
    at: int
    queries: int
    chance: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"of the first {self.at} rows of the full scan they hold {self.value:.0%} "
            f"(95 % interval {low:.0%} to {high:.0%}, {self.queries} queries; chance {self.chance:.0%})"
        )


def recall(full_QN: np.ndarray, picked_QN: np.ndarray, *, at: int) -> Recall | None:
    """Of the `at` largest full scores of each query, those picked. Queries without a finite score are left out; None without any other."""
    shares = [float(picked_N[_first(full_N, at)].mean()) for full_N, picked_N in zip(full_QN, picked_QN, strict=True) if _known(full_N)]
    if not shares:
        return None
    known_Q = np.array([_known(full_N) for full_N in full_QN])
    chance = float((picked_QN & np.isfinite(full_QN))[known_Q].sum() / np.isfinite(full_QN)[known_Q].sum())
    return Recall(float(np.mean(shares)), share_interval(shares, trials=at), at, len(shares), chance)


def _known(full_N: np.ndarray) -> bool:
    return bool(np.isfinite(full_N).any())


def _first(full_N: np.ndarray, at: int) -> np.ndarray:
    order = np.argsort(-np.where(np.isfinite(full_N), full_N, -np.inf), kind="stable")[:at]
    return order[np.isfinite(full_N[order])]


def share_interval(shares: list[float], *, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for the mean of Q shares of `trials` each, a query's trials not being independent of each other.

    In the place of the number of trials stands the number of independent ones that would vary as much as the shares do, at most all of
    them; in the place of the normal quantile Student's with Q - 1 degrees of freedom. One query says nothing of others: 0 to 1.
    """
    n, mean = len(shares), float(np.mean(shares))
    if n < 2:
        return 0.0, 1.0
    variance, most = float(np.var(shares, ddof=1)) / n, n * trials
    effective = min(mean * (1 - mean) / variance, most) if variance > 0 else most
    z2 = float(stdtrit(n - 1, 0.5 + level / 2)) ** 2 / effective
    middle, half = mean + z2 / 2, math.sqrt(z2 * (mean * (1 - mean) + z2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))
