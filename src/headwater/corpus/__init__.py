"""Examples in: read rows from anywhere, turn them into tokens and loss masks, plan batches."""

from headwater.corpus.batch import collate, plan_batches
from headwater.corpus.columns import Columns
from headwater.corpus.encode import Corpus, encode, load_corpus
from headwater.corpus.identity import count_copies, number_copies
from headwater.corpus.queries import query, read_queries
from headwater.corpus.read import RawRows, read_rows
from headwater.corpus.report import CorpusReport

__all__ = [
    "Columns", "Corpus", "CorpusReport", "RawRows", "collate", "count_copies", "encode", "load_corpus", "number_copies",
    "plan_batches", "query", "read_queries", "read_rows",
]  # fmt: skip
