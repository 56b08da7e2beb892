"""Hub correction: a row that scores high for every query is evidence about none.

R reference queries · N training rows · Q queries

Training rows themselves, in the place of queries, say what each row scores when nothing is asked of it in particular. A score is then
given against the row's own distribution: z says how far out it is, p how often a pair without a cause is as far out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.stats import false_discovery_control, skew
from torch import Tensor

from headwater.rank.topk import proponents
from headwater.types import Index, Member, MemberRole, Method, Scores, State, UsageError

Tail = Literal["upper", "lower"]

FLAT = 1e-6  # a spread below this share of a row's scores is float32's rounding: the row scores the same for every query


class ReferenceQueries:
    """Rows of an index in the place of queries: what would score high for "say this training row".

    The measure of a row is the log-probability of its response, minus its loss, so its gradient is negated. Representations and texts are
    the row's own.
    """

    gradient_of = "measure"

    def __init__(self, index: Index, positions_R: np.ndarray) -> None:
        self.index, self.positions_R = index, positions_R
        self.layout, self.features = index.layout, index.features

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(str(self.index.ids[i]) for i in self.positions_R)

    def __len__(self) -> int:
        return len(self.positions_R)

    def blocks(self, feature: str) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.take(feature, np.arange(len(self)))

    def take(self, feature: str, positions: Sequence[int] | np.ndarray) -> Tensor:
        rows_RD = self.index.take(feature, self.positions_R[np.asarray(positions, dtype=np.int64)])
        return -rows_RD if feature.startswith("gradient") else rows_RD

    def products(self, feature: str, queries_QD: Tensor, *, scale_N: Tensor | None = None) -> Tensor:
        values_QR = queries_QD @ self.take(feature, np.arange(len(self))).T
        return values_QR if scale_N is None else values_QR * scale_N

    def column(self, name: str) -> np.ndarray:
        if name == "measure":
            return -self.index.column("loss")[self.positions_R]
        if name == "measure_name":
            return np.full(len(self), "response_log_probability", dtype=object)
        return self.index.column(name)[self.positions_R]

    def members(self, role: MemberRole) -> tuple[Member, ...]:
        """A query's side of an Adam member is a plain gradient, which the checkpoint of the same step has; without one it is left out."""
        members = self.index.members(role)
        if role == "adam":
            plain = {member.step: member.index for member in self.index.members("checkpoint")}
            members = tuple(replace(member, index=plain[member.step]) for member in members if member.step in plain)
        return tuple(replace(member, index=ReferenceQueries(member.index, self.positions_R)) for member in members)


@dataclass(frozen=True, eq=False)
class Reference:
    """What every training row scores for R reference queries. NaN where a pair says nothing: the row itself, its duplicates, bad rows."""

    values_RN: np.ndarray

    @cached_property
    def counts_N(self) -> np.ndarray:
        return np.isfinite(self.values_RN).sum(0)

    @cached_property
    def means_N(self) -> np.ndarray:
        return self._sums_N / np.where(self.counts_N > 0, self.counts_N, np.nan)

    @cached_property
    def spreads_N(self) -> np.ndarray:
        """Standard deviations (n - 1); 0 where the row scores the same for every query, NaN with fewer than two scores."""
        return _spread(self._squares_N, self.counts_N, self.means_N)

    def z(self, values_QN: np.ndarray) -> np.ndarray:
        """[Q, N] `(score - mean) / (std sqrt(1 + 1/R))`: the standardised prediction error of one more score of that row.

        A row without spread has z 0 where the score is the one it always has, and an infinite z where it is not. A query whose scores are
        large altogether (grad_dot with a long gradient) has large z altogether; cosines do not have this.
        """
        return _standardise(np.asarray(values_QN, dtype=np.float64), self.means_N, self.spreads_N, self.counts_N)

    def p(self, z_QN: np.ndarray, *, tail: Tail = "upper") -> np.ndarray:
        """[Q, N] one-sided: `(1 + #{pooled z >= z}) / (1 + #pooled)`, or `<=` for the lower tail.

        Pooled over all reference pairs, each left out of its own row's mean and spread. The smallest possible p is about 1 / (R N).
        """
        below_QN = np.searchsorted(self.pooled_z, z_QN, side="left" if tail == "upper" else "right")
        beyond_QN = len(self.pooled_z) - below_QN if tail == "upper" else below_QN
        return np.where(np.isnan(z_QN), np.nan, (1 + beyond_QN) / (1 + len(self.pooled_z)))

    @cached_property
    def pooled_z(self) -> np.ndarray:
        """Sorted z of every reference pair against the row's other reference scores. Memory: R N numbers of 8 bytes."""
        values_RN = self._values_RN
        others_N = self.counts_N - 1
        means_RN = (self._sums_N - values_RN) / np.where(others_N > 0, others_N, np.nan)
        deviations_RN = values_RN - self.means_N
        squares_RN = self._squares_N - deviations_RN**2 * self.counts_N / np.where(others_N > 0, others_N, np.nan)
        z_RN = _standardise(values_RN, means_RN, _spread(squares_RN, others_N, means_RN), others_N)
        return np.sort(z_RN[~np.isnan(z_RN)])

    @cached_property
    def _values_RN(self) -> np.ndarray:
        return self.values_RN.astype(np.float64)

    @cached_property
    def _sums_N(self) -> np.ndarray:
        return np.nansum(self._values_RN, axis=0)

    @cached_property
    def _squares_N(self) -> np.ndarray:
        """Sums of squared deviations from the row's mean."""
        return np.nansum((self._values_RN - self.means_N) ** 2, axis=0)


def reference_scores(method: Method, state: State, index: Index, *, n_reference: int = 128, seed: int = 0) -> Reference:
    """Score a seeded sample of `n_reference` training rows as queries: one more scan of the index.

    A row is never its own reference, nor are rows of its group (the same text): those would be found for a cause. Rows stored as bad are
    not drawn. Raises UsageError where fewer than 3 rows can be drawn.
    """
    positions_R = _sample(index, n_reference, seed)
    values_RN = method.score(state, index, ReferenceQueries(index, positions_R)).values_QN.copy()
    values_RN[_related(index, positions_R)] = np.nan
    return Reference(values_RN)


def can_refer(index: Index, roles: Collection[MemberRole]) -> bool:
    """Whether rows can stand in the place of queries for a method that uses members of these roles.

    Not where an Adam member has no checkpoint member of its step: its rows are updates, and a query's side is a plain gradient.
    """
    plain = {member.step for member in index.members("checkpoint")} if "adam" in roles else set()
    return "adam" not in roles or all(member.step in plain for member in index.members("adam"))


def benjamini_hochberg(p_QN: np.ndarray) -> np.ndarray:
    """[..., N] q-values: the expected share of false finds among the rows up to this one, over the last axis. NaN takes no part."""
    p_2N = np.atleast_2d(p_QN)
    q_2N = np.full(p_2N.shape, np.nan)
    for q_N, p_N in zip(q_2N, p_2N, strict=True):
        known = ~np.isnan(p_N)
        if known.any():
            q_N[known] = false_discovery_control(p_N[known], method="bh")
    return q_2N.reshape(np.shape(p_QN))


@dataclass(frozen=True)
class HubFacts:
    """How much a method's answers have in common. `top1_id` is the row that comes first for the largest share of queries.

    `occurrence_skewness` is the skewness, over rows, of in how many queries' top k a row stands: near 0 where every row has its turn, above
    about 1 where hubs take the places (Radovanovic et al. 2010).
    """

    top1_id: str | None
    top1_share: float
    occurrence_skewness: float
    k: int
    n_queries: int


def hub_facts(scores: Scores, *, k: int = 10) -> HubFacts:
    """Over the k strongest proponents of each query; queries without any are left out. Cost: a partial sort of each query's scores."""
    listed = [positions for values_N in scores.values_QN if len(positions := proponents(values_N, k))]
    if not listed:
        return HubFacts(None, float("nan"), float("nan"), k, 0)
    firsts, counts = np.unique([positions[0] for positions in listed], return_counts=True)
    occurrences_N = np.bincount(np.concatenate(listed), minlength=len(scores.train_ids))
    skewness = float(skew(occurrences_N)) if np.ptp(occurrences_N) else 0.0
    return HubFacts(scores.train_ids[firsts[counts.argmax()]], float(counts.max() / len(listed)), skewness, k, len(listed))


def _sample(index: Index, n_reference: int, seed: int) -> np.ndarray:
    """[R] positions in order, drawn without replacement from the rows that are not bad."""
    good = np.flatnonzero(~index.column("bad").astype(bool))
    n = min(n_reference, len(good))
    if n < 3:
        raise UsageError(f"{n} reference queries ({n_reference} asked for, {len(good)} good rows), expected 3 or more: z needs a spread")
    return np.sort(np.random.default_rng(seed).choice(good, size=n, replace=False))


def _related(index: Index, positions_R: np.ndarray) -> np.ndarray:
    """[R, N] true where a row is the reference or shares its group. Rows without a group are related to themselves only."""
    groups = ["" if group is None else str(group) for group in index.column("group")]
    _, codes_N = np.unique(groups, return_inverse=True)
    named_R = np.array([groups[i] != "" for i in positions_R])
    related_RN = (codes_N[positions_R][:, None] == codes_N[None]) & named_R[:, None]
    related_RN[np.arange(len(positions_R)), positions_R] = True
    return related_RN


def _spread(squares: np.ndarray, counts_N: np.ndarray, means: np.ndarray) -> np.ndarray:
    spreads = np.sqrt(np.maximum(squares, 0) / np.where(counts_N > 1, counts_N - 1, np.nan))
    return np.where(spreads <= FLAT * np.abs(means), 0.0, spreads)


def _standardise(values: np.ndarray, means: np.ndarray, spreads: np.ndarray, counts_N: np.ndarray) -> np.ndarray:
    """Deviations over the spread of a prediction error, without which few references would give too large a z."""
    deviations = values - means
    deviations = np.where(np.abs(deviations) <= FLAT * np.abs(means), 0.0, deviations)
    errors = spreads * np.sqrt(1 + 1 / np.where(counts_N > 0, counts_N, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(deviations == 0, 0.0 * errors, deviations / errors)
