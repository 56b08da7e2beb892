"""A score matrix from a file, whoever wrote it: npy, csv, parquet, safetensors, or a run folder of ours. Q queries · N training rows

Rows are queries, columns are training rows. Scores leave this file with Headwater's sign (positive: a proponent), so `sign` says what the
file's is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch

from headwater.types import DataError, Scores, UsageError

Sign = Literal["positive", "negative"]
"""What a high number in a file means: "positive" the row pushed towards the output; "negative" it is an influence on the *loss*, as the
paper's `I`, where the lowest number is the strongest proponent."""

INDEX_NAMES = ("", "id", "index", "query", "query_id", "Unnamed: 0", "__index_level_0__")
MEANT = "expected a matrix of numbers, a row for each query and a column for each training row"


@dataclass(frozen=True)
class Matrix:
    """Numbers as a file has them; ids where it names its rows and columns."""

    values_QN: np.ndarray
    query_ids: tuple[str, ...] | None = None
    train_ids: tuple[str, ...] | None = None
    method: str | None = None
    unit: str | None = None


def read_scores(path: str | Path, *, sign: Sign | None = None, method: str | None = None) -> Scores:
    """The scores in an npy, csv, tsv, parquet or safetensors file, or of a run or trace folder's `method` (its primary one).

    `sign` is "positive" where it is not given; a folder of ours is always positive, and "negative" is refused for it. Ids are the file's
    own where it has them (`provenance["ids"] == "given"`), else positions counted from 0 ("positions").
    UsageError for a path or kind that is not known; DataError for what is no matrix, is empty, or has an infinite number.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if sign == "negative":
            raise UsageError(f"{path} is a folder of Headwater's, whose scores are positive for proponents: leave --sign out")
        matrix = _folder(path, method)
    else:
        matrix = _file(path, method)
    return _checked(matrix, path, sign or "positive")


def as_scores(given: str | Path | Scores | np.ndarray, *, sign: Sign | None = None, method: str | None = None) -> Scores:
    """A path is read; `Scores` are what they are; an array [Q, N] becomes Scores with positions for ids."""
    if isinstance(given, str | Path):
        return read_scores(given, sign=sign, method=method)
    if isinstance(given, np.ndarray):
        return _checked(Matrix(given, method="array"), Path("the array"), sign or "positive")
    if sign == "negative":
        raise UsageError("Scores are positive for proponents by definition: leave the sign out")
    return given


def _checked(matrix: Matrix, path: Path, sign: Sign) -> Scores:
    values_QN = matrix.values_QN
    if values_QN.ndim != 2:
        raise DataError(f"{path}: an array of shape {values_QN.shape}, {MEANT}. One query's scores are a matrix of one row: reshape(1, -1)")
    if 0 in values_QN.shape:
        raise DataError(f"{path}: {values_QN.shape[0]} queries and {values_QN.shape[1]} training rows, expected at least one of each")
    if np.iscomplexobj(values_QN) or values_QN.dtype.kind not in "fiub":
        raise DataError(f"{path}: numbers of type {values_QN.dtype}, {MEANT}")
    values_QN = values_QN.astype(np.float64) * (-1 if sign == "negative" else 1)
    if n_infinite := int(np.isinf(values_QN).sum()):
        raise DataError(
            f"{path}: {n_infinite} scores are infinite, expected numbers, or NaN where a row has none. Likely an overflow in float16"
        )
    n_queries, n_rows = values_QN.shape
    given = matrix.train_ids is not None
    return Scores(
        values_QN=values_QN,
        query_ids=_unique(matrix.query_ids or _positions(n_queries), path, "query"),
        train_ids=_unique(matrix.train_ids or _positions(n_rows), path, "training row"),
        method=matrix.method or path.stem,
        unit=matrix.unit,
        provenance={"file": str(path), "sign": sign, "ids": "given" if given else "positions"},
    )


def _positions(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))


def _unique(ids: tuple[str, ...], path: Path, what: str) -> tuple[str, ...]:
    if len(set(ids)) < len(ids):
        twice = next(one for place, one in enumerate(ids) if one in ids[:place])
        raise DataError(f"{path}: the {what} id {twice!r} stands there more than once, expected every id once")
    return ids


# --------------------------------------------------------------------------------------------------------- folders


def _folder(path: Path, method: str | None) -> Matrix:
    """A trace's folder (RUN/scores/NAME), or a run's newest trace."""
    traces = [path] if (path / "trace.json").exists() else [found.parent for found in (path / "scores").glob("*/trace.json")]
    if not traces:
        raise UsageError(f"{path}: no trace in it, expected a run folder that was traced in, or one of its folders in scores/")
    newest = max(traces, key=lambda trace: ((trace / "trace.json").stat().st_mtime_ns, trace.name))
    try:
        record = json.loads((newest / "trace.json").read_text(encoding="utf-8"))
        known = {one["name"]: one for one in record["methods"]}
        chosen = method or record.get("primary") or next(iter(known))
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise DataError(
            f"{newest / 'trace.json'} cannot be read ({error!r}). Trace again: the same command writes the same file"
        ) from error
    if chosen not in known:
        raise UsageError(f"method {chosen!r} is not in {newest}; there are: {', '.join(known)}")
    ids = _ids_beside(newest / "ids.json")
    values_QN = _safetensors(newest / f"{chosen}.safetensors")
    if ids is None or values_QN.shape != (len(ids[0]), len(ids[1])):
        raise DataError(
            f"{newest}: ids.json and the scores of {chosen} do not fit together. Trace again: the same command writes the same files"
        )
    return Matrix(values_QN, *ids, method=chosen, unit=known[chosen]["unit"])


def _ids_beside(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Query ids and training ids of `ids.json`, None where there is no such file."""
    if not path.exists():
        return None
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
        return tuple(map(str, ids["query_ids"])), tuple(map(str, ids["train_ids"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as ids ({error!r}), expected query_ids and train_ids") from error


# ----------------------------------------------------------------------------------------------------------- files


def _file(path: Path, method: str | None) -> Matrix:
    kind = path.suffix.lower()
    if method is not None:
        raise UsageError(f"{path}: a method is chosen in a run folder; a file has one matrix. Leave --method out")
    if kind not in READERS:
        raise UsageError(f"{path}: got a {kind or 'nameless'} file, expected one of {', '.join(READERS)}, or a run folder")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty, {MEANT}")
    return READERS[kind](path)


def _read_npy(path: Path) -> Matrix:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as npy ({error}), {MEANT}. An array of objects is never read: it could run code") from error
    return Matrix(np.asarray(values))


def _read_safetensors(path: Path) -> Matrix:
    """With an `ids.json` beside it, as in our trace folders, the ids are its."""
    values_QN = _safetensors(path)
    ids = _ids_beside(path.with_name("ids.json"))
    if ids is None:
        return Matrix(values_QN)
    if values_QN.shape != (len(ids[0]), len(ids[1])):
        raise DataError(
            f"{path}: scores of shape {values_QN.shape}, but ids.json beside it names {len(ids[0])} queries and {len(ids[1])} rows"
        )
    return Matrix(values_QN, *ids)


def _safetensors(path: Path) -> np.ndarray:
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} cannot be read as safetensors ({error}), {MEANT}") from error
    chosen = "scores" if "scores" in tensors else next(iter(tensors), "")
    if len(tensors) != 1 and chosen != "scores":
        raise DataError(f"{path}: tensors {', '.join(sorted(tensors)) or '(none)'}, expected a single one, or one named scores")
    return tensors[chosen].float().numpy() if tensors[chosen].is_floating_point() else tensors[chosen].numpy()


def _read_parquet(path: Path) -> Matrix:
    try:
        frame = pd.read_parquet(path)
    except Exception as error:  # pyarrow has its own kinds for each way a file can be damaged
        raise DataError(f"{path} cannot be read as parquet ({error}), {MEANT}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names="query_id")
    names = [str(name) for name in frame.columns]
    first = bool(names) and (names[0] in INDEX_NAMES or not pd.api.types.is_numeric_dtype(frame.iloc[:, 0]))
    queries = tuple(frame.iloc[:, 0].astype(str)) if first else None
    return _matrix(frame.iloc[:, int(first) :], path, queries, names[int(first) :])


def _read_csv(path: Path) -> Matrix:
    """The paper's form, a header of training ids and a query id before each line, and the same without either.

    The first column is an index where the header has no name or a usual name for it, where it is no number, or, without a header, counts
    from 0. `_is_header` says when the first line is one.
    """
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    first, second, widths = _look(path, separator)
    header = _is_header(first, second)
    if len(widths) > 1 or next(iter(widths)) != len(second):
        raise DataError(f"{path}: lines of {min(widths)} and of {max(widths)} fields, expected the same on all. Likely cut off or merged")
    try:
        frame = pd.read_csv(path, sep=separator, header=None, skiprows=int(header), encoding="utf-8-sig", low_memory=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as csv ({error}), {MEANT}") from error
    named = header and (len(first) < len(second) or first[0] in INDEX_NAMES)
    index = named or not _numeric(frame.iloc[:, 0]) or (not header and _counts(frame.iloc[:, 0].astype(str).tolist()))
    names = first[len(first) - frame.shape[1] + 1 :] if index else first
    queries = tuple(frame.iloc[:, 0].astype(str)) if index else None
    return _matrix(frame.iloc[:, int(index) :], path, queries, list(names) if header else [])


def _is_header(first: Sequence[str], second: Sequence[str]) -> bool:
    """One field less than the second line, an index's usual name at first, counting from 0, or a word where the other has a number."""
    if len(first) == len(second) - 1 or first[0] in INDEX_NAMES or _counts(first):
        return True
    return not all(map(_is_number, first[1:])) or (not _is_number(first[0]) and _is_number(second[0]))


def _look(path: Path, separator: str) -> tuple[list[str], list[str], set[int]]:
    """The first two lines that are not blank, the first twice where there is one only, and the widths of all but the first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = (line for line in csv.reader(file, delimiter=separator) if line)
            first = next(lines, None)
            second = next(lines, None)
            widths = {len(line) for line in lines}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv ({error}), {MEANT}") from error
    if first is None:
        raise DataError(f"{path} has no line in it, {MEANT}")
    second = second or first
    return [field.strip() for field in first], second, widths | {len(second)}


def _matrix(frame: pd.DataFrame, path: Path, queries: tuple[str, ...] | None, names: Sequence[str]) -> Matrix:
    """Names that count from 0 are positions, as pandas writes them, and no ids."""
    for place, (name, column) in enumerate(frame.items()):
        if not _numeric(column):
            bad = pd.to_numeric(column, errors="coerce").isna() & column.notna()
            shown = column[bad].iloc[0] if bad.any() else column.iloc[0]
            raise DataError(f"{path}: {shown!r} in column {name if not names else names[place]!r} is no number, {MEANT}")
    train = None if not names or _counts(list(names)) else tuple(names)
    queries = None if queries is None or _counts(list(queries)) else queries
    return Matrix(frame.to_numpy(dtype=np.float64), queries, train)


def _numeric(column: pd.Series[Any]) -> bool:
    return pd.api.types.is_numeric_dtype(column) or bool(column.isna().all())


def _is_number(field: str) -> bool:
    try:
        float(field or "nan")
    except ValueError:
        return False
    return True


def _counts(fields: Sequence[str]) -> bool:
    """Whether they are 0, 1, 2, ... (at least two) or 1, 2, 3, ... (at least three): positions, which no scores are by chance."""
    return any(
        len(fields) > 1 + start and all(field.strip() in (str(i), f"{i}.0") for i, field in enumerate(fields, start)) for start in (0, 1)
    )


READERS = {".npy": _read_npy, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".safetensors": _read_safetensors}
