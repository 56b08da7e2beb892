"""TF-IDF: the cosine of weighted word counts. The plainest text search, and the baseline that shows what a task's words alone give away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_array

from headwater.methods.lexical import TOKEN, fit_words, query_counts, row_weights, word_counts
from headwater.methods.shared import Text, check, check_rows, check_text, make_scores
from headwater.types import Index, Scores, State


@dataclass(frozen=True)
class TfIdf:
    """`score(q, n) = cos(c_q w, c_n w)`, c the counts of each word, `w_t = ln((1 + N) / (1 + n_t)) + 1`; n_t of the N rows have word t.

    The weights of scikit-learn's TfidfVectorizer (smooth idf, unit length, raw counts) over the words of `lexical`, which counts single
    characters too. A query's words that no row has are left out before its length is taken. `text` says which text of either side is
    compared. No unit. Fit: the sparse word weights. Score: one sparse product. No shared word, or no text, scores 0.
    """

    text: Text = "both"

    name = "tfidf"
    unit = None
    requires = frozenset[str]()
    columns = frozenset({"prompt", "response"})
    summary = "TF-IDF: rows whose words are the query's, the rare ones counting more"
    reference = "Salton and Buckley 1988"
    cost = "one pass over the texts to fit, one sparse product"

    def __post_init__(self) -> None:
        check_text(self.name, self.text)

    def fit(self, index: Index) -> State:
        return fit_words(index, self.text, _tfidf_weights)

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        asked_VQ = _unit_columns(query_counts(state, queries, self.text), state["idf"].numpy())
        values_NQ: Any = row_weights(state, index) @ asked_VQ
        return make_scores(self, values_NQ.toarray().T, index, queries, tokens=TOKEN)


def _tfidf_weights(documents: list[list[str]], vocabulary: list[str]) -> dict[str, torch.Tensor]:
    """A row's vector has length 1; "idf" is [V], for the queries' vectors."""
    counts_VN = word_counts(documents, {word: i for i, word in enumerate(vocabulary)})
    n_rows_V = np.bincount(counts_VN.indices, minlength=len(vocabulary))
    idf_V = np.log((1 + len(documents)) / (1 + n_rows_V)) + 1
    rows_NV = csc_array(_unit_columns(counts_VN, idf_V).T)
    return {
        "data": torch.from_numpy(rows_NV.data),
        "rows_of": torch.from_numpy(rows_NV.indices.astype(np.int32)),
        "starts": torch.from_numpy(rows_NV.indptr.astype(np.int64)),
        "idf": torch.from_numpy(idf_V),
    }


def _unit_columns(counts_VN: csc_array, idf_V: np.ndarray) -> csc_array:
    """Each text's counts times the idf, divided by the length; a text of no known word stays empty."""
    values, sizes_N = counts_VN.data * idf_V[counts_VN.indices], np.diff(counts_VN.indptr)
    text_of = np.repeat(np.arange(len(sizes_N)), sizes_N)
    lengths_N = np.sqrt(np.bincount(text_of, values**2, minlength=len(sizes_N)))
    return csc_array((values / lengths_N[text_of], counts_VN.indices, counts_VN.indptr), shape=counts_VN.shape)
