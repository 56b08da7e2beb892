"""Near-duplicates: fifty copies of one row are one piece of evidence."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

ALIKE = 0.8  # Jaccard similarity of shingles from which two texts count as one
SHINGLE_WORDS = 3

Shingles = frozenset[tuple[str, ...]]


def near_duplicates(ids: Sequence[str], groups: Sequence[str], texts: Sequence[str], *, alike: float = ALIKE) -> dict[str, list[str]]:
    """{id: the ids of the other rows of its cluster, in the order given}, for every id. See `clusters`."""
    labels = clusters(groups, texts, alike=alike)
    members: dict[int, list[str]] = {}
    for row_id, label in zip(ids, labels, strict=True):
        members.setdefault(label, []).append(row_id)
    return {row_id: [other for other in members[label] if other != row_id] for row_id, label in zip(ids, labels, strict=True)}


def clusters(groups: Sequence[str], texts: Sequence[str], *, alike: float = ALIKE) -> list[int]:
    """[N] which cluster each row is in.

    Two rows are near-duplicates where their group is the same (text equal but for case and white space), or their sets of three-word
    shingles overlap by a Jaccard similarity of at least `alike`; a cluster is what such pairs connect. Exact. Only sets that share one of
    their rarest shingles are compared, since two sets that alike must (Bayardo et al. 2007, prefix filtering): close to linear in the
    corpus where texts differ.
    """
    shingled = [shingles(text) for text in texts]
    pairs = [*_equal(groups), *_equal(shingled), *_alike(shingled, alike)]
    rows, columns = np.array(pairs).T if pairs else (np.empty(0, int), np.empty(0, int))
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1].tolist() if len(groups) else []


def shingles(text: str) -> Shingles:
    """Every run of three words, in lower case; a shorter text is one run. None of an empty text."""
    words = text.lower().split()
    if len(words) <= SHINGLE_WORDS:
        return frozenset([tuple(words)] if words else [])
    return frozenset(zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False))


def jaccard(a: Shingles, b: Shingles) -> float:
    """Shared over all; 0 where there is nothing."""
    return len(a & b) / len(a | b) if a or b else 0.0


def _equal(keys: Sequence[str] | Sequence[Shingles]) -> Iterator[tuple[int, int]]:
    """(first row with that key, row) of every further row with it; an empty key is like no other."""
    first: dict[str | Shingles, int] = {}
    for i, key in enumerate(keys):
        if key and first.setdefault(key, i) != i:
            yield first[key], i


def _alike(shingled: Sequence[Shingles], alike: float) -> Iterator[tuple[int, int]]:
    """Pairs of unequal sets that are near-duplicates."""
    distinct = {one: i for i, one in reversed(list(enumerate(shingled))) if one}  # the first row of each
    frequency = Counter(shingle for one in distinct for shingle in one)
    holders: dict[tuple[str, ...], list[Shingles]] = defaultdict(list)
    for one, i in distinct.items():
        rarest = sorted(one, key=lambda shingle: (frequency[shingle], shingle))[: _prefix(len(one), alike)]
        for other in {other for shingle in rarest for other in holders[shingle]}:
            if jaccard(one, other) >= alike:
                yield distinct[other], i
        for shingle in rarest:
            holders[shingle].append(one)


def _prefix(n: int, alike: float) -> int:
    """How many of a set's shingles one must look at: two sets this alike cannot differ in all of them."""
    return n - math.ceil(alike * n - 1e-9) + 1
