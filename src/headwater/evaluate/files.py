"""From what a user names, paths or objects, to an evaluation. Q queries · N training rows"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headwater.evaluate.classes import ClassLabels
from headwater.evaluate.labels import read_flags, read_labels
from headwater.evaluate.read import Sign, as_scores
from headwater.evaluate.summary import Evaluation, Options, evaluate
from headwater.types import Scores, Truth, UsageError

Matrix = str | Path | Scores | np.ndarray
Column = str | Path | Sequence[str] | np.ndarray


@dataclass(frozen=True)
class Tables:
    """What scores are held against, as the user has it.

    Labels are files, of which `label_column` is read, or the labels themselves: one for each row, in order. `mislabelled` names a column
    of true and false in the file of training labels.
    """

    train_labels: Column | None = None
    query_labels: Column | None = None
    label_column: str | None = None
    mislabelled: str | None = None


def evaluate_given(
    scores: Matrix,
    tables: Tables,
    *,
    truth: Truth | None = None,
    against: Matrix | None = None,
    sign: Sign | None = None,
    method: str | None = None,
    options: Options | None = None,
) -> Evaluation:
    """Read what is given and evaluate it. `sign` is that of files and arrays, `method` of the first scores."""
    _check_given(tables)
    _check_sign(scores, against, sign)
    ours = as_scores(scores, sign=sign if _has_sign(scores) else None, method=method)
    theirs = None if against is None else as_scores(against, sign=sign if _has_sign(against) else None)
    return evaluate(ours, labels=_labels(ours, tables), truth=truth, wrong_N=_wrong(ours, tables), against=theirs, options=options)


def _labels(scores: Scores, tables: Tables) -> ClassLabels | None:
    if tables.train_labels is None or tables.query_labels is None:
        return None
    n_queries, n_train = scores.values_QN.shape
    return ClassLabels(
        train_N=_column(tables.train_labels, tables.label_column, n_train, "training rows"),
        query_Q=_column(tables.query_labels, tables.label_column, n_queries, "queries"),
    )


def _wrong(scores: Scores, tables: Tables) -> np.ndarray | None:
    if tables.mislabelled is None or not isinstance(tables.train_labels, str | Path):
        return None
    return read_flags(tables.train_labels, tables.mislabelled, n=len(scores.train_ids))


def _column(given: Column, column: str | None, n: int, of: str) -> np.ndarray:
    return read_labels(given, column, n=n, of=of) if isinstance(given, str | Path) else np.array([str(one) for one in given])


def _has_sign(given: Matrix | None) -> bool:
    """Whether one has to be told what a high number means: not of our folders and objects, in which it is a proponent."""
    return isinstance(given, np.ndarray) or (isinstance(given, str | Path) and not Path(given).is_dir())


def _check_sign(scores: Matrix, against: Matrix | None, sign: Sign | None) -> None:
    if sign == "negative" and not _has_sign(scores) and not _has_sign(against):
        raise UsageError("runs and Scores of Headwater's are positive for proponents: leave the sign (--sign) out")


def _check_given(tables: Tables) -> None:
    if tables.mislabelled is not None and not isinstance(tables.train_labels, str | Path):
        raise UsageError(f"mislabelled names the column {tables.mislabelled!r}, but no file of training labels is given to find it in")
    one_side = (tables.train_labels is None) != (tables.query_labels is None)
    if one_side and tables.mislabelled is None:
        missing = "query" if tables.query_labels is None else "train"
        raise UsageError(f"labels of one side only: give --{missing}-labels too. A class is what a query and a training row have in common")
