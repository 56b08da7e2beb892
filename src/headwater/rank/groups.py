"""Near-duplicates among the rows of an answer: fifty copies of one row are one piece of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

ALIKE = 0.8  # Jaccard similarity of shingles from which two texts count as one
SHINGLE_WORDS = 3


def near_duplicates(ids: Sequence[str], groups: Sequence[str], texts: Sequence[str], *, alike: float = ALIKE) -> dict[str, list[str]]:
    """{id: the ids of the other rows of its cluster, in the order given}, for every id.

    Two rows are near-duplicates where their group is the same (text equal but for case and white space), or their sets of three-word
    shingles overlap by a Jaccard similarity of at least `alike`; a cluster is what such pairs connect. Cost: all pairs, K^2 set
    intersections, so it is for the rows of an answer, not for a corpus.
    """
    clusters = _clusters(groups, [shingles(text) for text in texts], alike)
    members: dict[int, list[str]] = {}
    for row_id, cluster in zip(ids, clusters, strict=True):
        members.setdefault(cluster, []).append(row_id)
    return {row_id: [other for other in members[cluster] if other != row_id] for row_id, cluster in zip(ids, clusters, strict=True)}


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of three words, in lower case; a shorter text is one run. None of an empty text."""
    words = text.lower().split()
    if len(words) <= SHINGLE_WORDS:
        return frozenset([tuple(words)] if words else [])
    return frozenset(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))


def jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """Shared over all; 0 where there is nothing."""
    return len(a & b) / len(a | b) if a or b else 0.0


def _clusters(groups: Sequence[str], shingled: Sequence[frozenset[tuple[str, ...]]], alike: float) -> list[int]:
    pairs = [
        (i, j) for j in range(len(groups)) for i in range(j) if _same(groups[i], groups[j]) or jaccard(shingled[i], shingled[j]) >= alike
    ]
    if not pairs:
        return list(range(len(groups)))
    rows, columns = np.array(pairs).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1].tolist()


def _same(a: str, b: str) -> bool:
    return bool(a) and a == b
