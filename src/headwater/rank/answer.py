"""From scores to an answer: the rows worth reading, with what is known about how far each can be believed.

Q queries · N training rows · K rows listed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from headwater.rank.errors import cosine_errors, dot_errors
from headwater.rank.groups import near_duplicates
from headwater.rank.hubs import Reference, Tail, benjamini_hochberg
from headwater.rank.topk import opponents, proponents
from headwater.types import Index, IntegrityError, Scores


def rank(
    scores: Scores, reference: Reference | None, index: Index, queries: Index, *, k: int = 10
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{query id: {"proponents": [ROW...], "opponents": [ROW...]}}, at most k rows each, ready for JSON.

    ROW: id, score, standard_error (of the sketch; None where the method has none), z, p, q, hub_rank (all None without `reference`) and
    near_duplicates (ids of the same list). An opponent's p, q and hub_rank look at the lower tail: how often a pair without a cause is as
    low. Raises IntegrityError where scores, reference and indexes do not name the same rows.
    """
    _check(scores, reference, index, queries)
    texts = {name: index.column(name) for name in ("group", "prompt", "response")}
    source = _Source(scores, reference, index, queries, texts)
    return {query_id: {name: source.rows(q, tail, k) for name, tail in TAILS.items()} for q, query_id in enumerate(scores.query_ids)}


TAILS: dict[str, Tail] = {"proponents": "upper", "opponents": "lower"}


@dataclass(frozen=True, eq=False)
class _Source:
    """What an answer is made from; the text columns are read once for all queries."""

    scores: Scores
    reference: Reference | None
    index: Index
    queries: Index
    columns: Mapping[str, np.ndarray]

    def rows(self, q: int, tail: Tail, k: int) -> list[dict[str, Any]]:
        values_N = self.scores.values_QN[q]
        positions_K = proponents(values_N, k) if tail == "upper" else opponents(values_N, k)
        ids = [self.scores.train_ids[i] for i in positions_K]
        facts = {
            "score": values_N[positions_K],
            "standard_error": self.errors(q, positions_K),
            **{name: fact_N[positions_K] for name, fact_N in _against(self.reference, values_N, tail).items()},
        }
        alike = near_duplicates(ids, self.text("group", positions_K), self.both_texts(positions_K))
        return [
            {"id": row_id, **{name: _clean(name, fact_K[place]) for name, fact_K in facts.items()}, "near_duplicates": alike[row_id]}
            for place, row_id in enumerate(ids)
        ]

    def errors(self, q: int, positions_K: np.ndarray) -> np.ndarray:
        """[K] the method's own where it has them, else the sketch's where the kernel is known, else NaN."""
        if self.scores.standard_errors_QN is not None:
            return self.scores.standard_errors_QN[q][positions_K]
        estimate = KERNELS.get(str(self.scores.provenance.get("kernel")))
        if estimate is None or self.scores.provenance.get("feature") != "gradient" or not len(positions_K):
            return np.full(len(positions_K), np.nan)
        query_1D, rows_1KD = self.queries.take("gradient", [q]), self.index.take("gradient", positions_K).unsqueeze(0)
        return estimate(self.index, query_1D, rows_1KD)[0].numpy()

    def text(self, name: str, positions_K: np.ndarray) -> list[str]:
        return ["" if value is None else str(value) for value in self.columns[name][positions_K]]

    def both_texts(self, positions_K: np.ndarray) -> list[str]:
        pairs = zip(self.text("prompt", positions_K), self.text("response", positions_K), strict=True)
        return [f"{prompt} {response}" for prompt, response in pairs]


def _against(reference: Reference | None, values_N: np.ndarray, tail: Tail) -> dict[str, np.ndarray]:
    """z, p, q and hub_rank of every row; NaN where there is no reference."""
    if reference is None:
        return dict.fromkeys(("z", "p", "q", "hub_rank"), np.full(len(values_N), np.nan))
    z_N = reference.z(values_N[None])[0]
    p_N = reference.p(z_N[None], tail=tail)[0]
    return {"z": z_N, "p": p_N, "q": benjamini_hochberg(p_N), "hub_rank": _ranks(z_N if tail == "upper" else -z_N)}


def _ranks(z_N: np.ndarray) -> np.ndarray:
    """1 + how many rows have a higher z; NaN stays NaN."""
    known = np.sort(z_N[~np.isnan(z_N)])
    return np.where(np.isnan(z_N), np.nan, 1.0 + len(known) - np.searchsorted(known, z_N, side="right"))


def _dot(index: Index, queries_QD: Tensor, rows_QKD: Tensor) -> Tensor:
    return dot_errors(index.layout, queries_QD, rows_QKD, n_rows=len(index))


def _cosine(index: Index, queries_QD: Tensor, rows_QKD: Tensor) -> Tensor:
    return cosine_errors(index.layout, queries_QD, rows_QKD)


KERNELS: dict[str, Callable[[Index, Tensor, Tensor], Tensor]] = {"dot": _dot, "cosine": _cosine}
"""How a score was made of two gradient rows, by the name that a method puts into its provenance under "kernel"."""


def _check(scores: Scores, reference: Reference | None, index: Index, queries: Index) -> None:
    if scores.train_ids != tuple(index.ids) or scores.query_ids != tuple(queries.ids):
        raise IntegrityError(
            f"the scores of {scores.method} name other rows or queries than the indexes given (scores: {scores.values_QN.shape}, indexes: "
            f"{(len(queries), len(index))}). Likely cause: rows were appended or removed since. Score again."
        )
    if "gradient" in index.features & queries.features:
        index.layout.check(queries.layout)
    if reference is not None and reference.values_RN.shape[1] != len(index):
        raise IntegrityError(
            f"the reference has {reference.values_RN.shape[1]} rows, the index {len(index)}: make it again with reference_scores"
        )


def _clean(name: str, value: Any) -> float | int | None:
    """JSON has no NaN and no infinity: both are null, "not known"."""
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if name == "hub_rank" else number
