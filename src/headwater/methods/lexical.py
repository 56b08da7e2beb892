"""BM25: rows that share words with the query. A baseline that needs no model, and is often hard to beat."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from scipy.sparse import csc_array

from headwater.methods.shared import Text, check, check_rows, check_text, make_scores, rows_key, texts
from headwater.types import Index, Scores, State

TOKEN = r"(?u)\b\w+\b"  # single characters count: in arithmetic they are the content


@dataclass(frozen=True)
class Lexical:
    """BM25 (Lucene's form) of the query's text against each row's, by bm25s; a word that the query repeats counts as often.

    `text` says which text of either side is compared. No stop words and no stemming: they would tie the baseline to one
    language, and the inverse document frequency already discounts common words. No unit. Fit: the sparse word weights.
    Score: one sparse product. No shared word, or no text, scores 0.
    """

    text: Text = "both"
    k1: float = 1.5
    b: float = 0.75

    name = "lexical"
    unit = None
    requires = frozenset[str]()
    columns = frozenset({"prompt", "response"})
    summary = "BM25: rows that share words with the query"
    reference = "Robertson and Zaragoza 2009; bm25s, arXiv 2407.03618"
    cost = "one pass over the texts to fit, one sparse product"

    def __post_init__(self) -> None:
        check_text(self.name, self.text)

    def fit(self, index: Index) -> State:
        return fit_words(index, self.text, partial(_bm25_weights, k1=self.k1, b=self.b))

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        return make_scores(self, word_scores(state, index, queries, self.text), index, queries, tokens=TOKEN)


# ------------------------------------------------------------------------------------------------- weights of words


class Weights(Protocol):
    """What each word counts in each row that has it: {"data", "rows_of", "starts"}, a sparse [N, V] matrix by columns."""

    def __call__(self, documents: list[list[str]], vocabulary: list[str]) -> dict[str, torch.Tensor]: ...


def fit_words(index: Index, text: Text, weights: Weights) -> State:
    """The word weights, and "vocabulary": the words in order as JSON bytes."""
    documents = tokenize(texts(index, text))
    vocabulary = sorted(set(chain.from_iterable(documents)))
    return {**weights(documents, vocabulary), "vocabulary": _to_bytes(vocabulary), "rows": rows_key(index)}


def word_scores(state: State, index: Index, queries: Index, text: Text) -> np.ndarray:
    """[Q, N] float64: for each word of the query, as often as it stands there, what it counts in the row."""
    values_NQ: Any = row_weights(state, index) @ query_counts(state, queries, text)
    return values_NQ.toarray().T


def row_weights(state: State, index: Index) -> csc_array:
    """[N, V] in float64: the sum over a query's words then does not depend on their order once it is rounded to float32."""
    shape = (len(index), len(state["starts"]) - 1)
    return csc_array((state["data"].double().numpy(), state["rows_of"].numpy(), state["starts"].numpy()), shape=shape)


def query_counts(state: State, queries: Index, text: Text) -> csc_array:
    """[V, Q] how often each query uses each word that the training rows know."""
    vocabulary = {word: i for i, word in enumerate(_from_bytes(state["vocabulary"]))}
    return word_counts(tokenize(texts(queries, text)), vocabulary)


def word_counts(documents: list[list[str]], vocabulary: dict[str, int]) -> csc_array:
    """[V, documents] how often each has each word of the vocabulary; other words are left out."""
    counted = [Counter(vocabulary[word] for word in document if word in vocabulary) for document in documents]
    starts = np.cumsum([0, *(len(count) for count in counted)])
    words = np.array([word for count in counted for word in sorted(count)], dtype=np.int64)
    times = np.array([count[word] for count in counted for word in sorted(count)], dtype=np.float64)
    return csc_array((times, words, starts), shape=(len(vocabulary), len(documents)))


def tokenize(documents: list[str]) -> list[list[str]]:
    """Lower-case words, in order, repeats kept."""
    import bm25s

    split: Any = bm25s.tokenize(documents, stopwords=[], token_pattern=TOKEN, return_ids=False, show_progress=False)
    return [[word for word in document if word] for document in split]


def _bm25_weights(documents: list[list[str]], vocabulary: list[str], *, k1: float, b: float) -> dict[str, torch.Tensor]:
    import bm25s

    if not vocabulary:
        return {"data": torch.zeros(0), "rows_of": torch.zeros(0, dtype=torch.int32), "starts": torch.zeros(1, dtype=torch.int64)}
    ids = {word: i for i, word in enumerate(vocabulary)}
    engine = bm25s.BM25(k1=k1, b=b, method="lucene")
    engine.index(([[ids[word] for word in document] for document in documents], ids), create_empty_token=False, show_progress=False)
    fitted = engine.scores
    return {
        "data": torch.from_numpy(np.array(fitted["data"], dtype=np.float32)),
        "rows_of": torch.from_numpy(np.array(fitted["indices"], dtype=np.int32)),
        "starts": torch.from_numpy(np.array(fitted["indptr"], dtype=np.int64)),
    }


def _to_bytes(words: list[str]) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(json.dumps(words).encode(), dtype=np.uint8).copy())


def _from_bytes(words: torch.Tensor) -> list[str]:
    return json.loads(words.numpy().tobytes().decode())
