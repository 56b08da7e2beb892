"""A column of labels from csv, parquet or jsonl: one for each training row, or for each query. N rows"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headwater.types import DataError, UsageError

TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


def read_labels(path: str | Path, column: str | None = None, *, n: int | None = None, of: str = "rows") -> np.ndarray:
    """[N] the column as text, row by row: 3 and 3.0 are "3". Where no column is named, the one called `label`.

    `n` is how many there must be. UsageError for a path, kind or column that is not there; DataError for a file that cannot be read, has
    another number of rows, or a label missing: scores are matched with labels by order, so nothing can be left out or over.
    """
    frame = _frame(Path(path))
    name = column or "label"
    if name not in frame.columns:
        raise UsageError(f"{path}: no column {name!r}; there are: {', '.join(map(str, frame.columns))}. Name one with --label-column")
    if n is not None and len(frame) != n:
        raise DataError(
            f"{path}: {len(frame)} labels, but the scores are of {n} {of}, expected one for each, in the same order. "
            f"Likely the labels of another split or another version of the data"
        )
    values = frame[name]
    missing = values.isna() | (values.astype(str).str.strip() == "")
    if missing.any():
        raise DataError(
            f"{path}: {int(missing.sum())} of {len(frame)} rows have no {name!r}, the first is row {int(missing.argmax())}; repair them"
        )
    return np.array([_text(value) for value in values])


def read_flags(path: str | Path, column: str, *, n: int) -> np.ndarray:
    """[N] bool from a column of true and false (or 1 and 0, yes and no)."""
    texts = [text.lower() for text in read_labels(path, column, n=n, of="training rows")]
    unknown = next((text for text in texts if text not in TRUE + FALSE), None)
    if unknown is not None:
        raise DataError(f"{path}: {unknown!r} in column {column!r}, expected true or false (or 1 and 0, yes and no)")
    return np.array([text in TRUE for text in texts])


def _text(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def _frame(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; check the path")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: got a {path.suffix or 'nameless'} file, expected one of {', '.join(READERS)}")
    try:
        frame = reader(path)
    except Exception as error:  # each reader has its own kinds of error for a damaged file
        raise DataError(
            f"{path} cannot be read as {path.suffix.lower()[1:]} ({error}); expected a table with a column of labels"
        ) from error
    if not len(frame):
        raise DataError(f"{path}: no rows in it, expected a label for each row of the scores")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    """As text: "01" is a label of its own, and so is "None"."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")


def _read_jsonl(path: Path) -> pd.DataFrame:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return pd.DataFrame(rows, dtype=object)


READERS = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": pd.read_parquet, ".jsonl": _read_jsonl}
