"""A control: a seeded draw. What a method finds must be better than this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from headwater.methods.shared import check, make_scores
from headwater.types import Index, Scores, State

COPY = re.compile(r"~\d+$")  # what the id of a further copy of a row ends in


@dataclass(frozen=True)
class Random:
    """A uniform draw in [-1, 1) for each pair, seeded by the two ids: the same under any order, subset or batch.

    Further copies of a row (`id~2`) get the score of the first. No unit. Cost: Q N hash mixes.
    """

    seed: int = 0

    name = "random"
    unit = None
    requires = frozenset[str]()
    columns = frozenset[str]()
    summary = "control: a seeded draw for each pair of query and row"
    reference = "control"
    cost = "none"

    def fit(self, index: Index) -> State:
        return {}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        return make_scores(self, draw(queries.ids, index.ids, seed=self.seed), index, queries)


def draw(query_ids: Sequence[str], train_ids: Sequence[str], *, seed: int) -> np.ndarray:
    """[Q, N] uniform in [-1, 1): the mixed bits of the two ids' hashes."""
    contents = [COPY.sub("", train_id) for train_id in train_ids]
    bits_QN = _mix(_hashes(query_ids, seed)[:, None] ^ _hashes(contents, seed + 1)[None])
    return (bits_QN >> np.uint64(11)) * 2.0**-52 - 1.0


def _hashes(ids: Sequence[str], seed: int) -> np.ndarray:
    return np.array([xxhash.xxh3_64_intdigest(row_id.encode(), seed=seed) for row_id in ids], dtype=np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit moves every output bit. Arithmetic is modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
