"""Rows in, from wherever they are. Every row knows its source and its number there; nothing is interpreted yet."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headwater.corpus.report import Listing, UnusableRow, refuse_mostly_undecodable
from headwater.types import DataError, UsageError

if TYPE_CHECKING:
    import datasets

Rows = Iterator[Mapping[str, Any] | UnusableRow]
"""What a reader yields, in order: the row, or why there is none in its place."""

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAGIC = {b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "gzip-compressed",
         b"PAR1": "a Parquet file", b"%PDF": "a PDF", b"SQLite format 3": "an SQLite database"}  # fmt: skip


@dataclass(frozen=True)
class RawRow:
    values: Mapping[str, Any]
    source: str
    row: int  # from 0 within the source; rows that could not be read count too


@dataclass(frozen=True)
class RawRows:
    """What was read: the rows, those that could not be read, and which columns each source has."""

    rows: tuple[RawRow, ...]
    undecodable: tuple[Listing, ...]
    columns: Mapping[str, tuple[str, ...]]  # by source, in order of first appearance

    @property
    def n_read(self) -> int:
        return len(self.rows) + len(self.undecodable)

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(data: Any, *, split: str | None = None, limit: int | None = None) -> RawRows:
    """Rows of a jsonl, json, csv, tsv or parquet file, a folder of such files, a `save_to_disk` folder, a hub id,
    a `datasets.Dataset`, or a list of dicts.

    `split` chooses one where there are several; `limit` stops after that many rows. A row that is not readable (invalid
    UTF-8 or JSON on a line, a csv row of another width) is listed in `undecodable` as long as at least half of its source is fine.
    Raises UsageError for an unknown kind of input or split, DataError for a file that is not what it claims to be.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"got limit {limit}, expected a number of rows of at least 1")
    sources = _sources(data, split=split)
    collected = _collect(sources, limit=limit)
    if not collected.n_read:
        raise DataError(f"{_name(data)}: no rows in it; expected at least one")
    return collected


def _collect(sources: Iterable[tuple[str, Rows]], *, limit: int | None) -> RawRows:
    rows: list[RawRow] = []
    bad: list[Listing] = []
    columns: dict[str, tuple[str, ...]] = {}
    n_rows: dict[str, int] = {}
    for source, items in sources:
        names: dict[str, None] = {}
        left = None if limit is None else limit - len(rows) - len(bad)
        for number, item in enumerate(itertools.islice(items, left)):
            if isinstance(item, UnusableRow):
                bad.append(Listing(item.reason, source, number, item.note))
            else:
                rows.append(RawRow(item, source, number))
                names.update(dict.fromkeys(item))
            n_rows[source] = number + 1
        columns[source] = tuple(names)
        if len(rows) + len(bad) == limit:
            break
    refuse_mostly_undecodable(bad, n_rows)
    return RawRows(tuple(rows), tuple(bad), {source: names for source, names in columns.items() if names})


# ------------------------------------------------------------------------------------------------- kinds of input


def _sources(data: Any, *, split: str | None) -> Iterable[tuple[str, Rows]]:
    if isinstance(data, (str, Path)):
        path = Path(data)
        if path.is_dir():
            return _folder(path, split=split)
        if path.is_file():
            return _files([path], split=split)
        return _hub(str(data), split=split)
    if isinstance(data, (list, tuple)):
        _refuse_split(split, "a list of rows")
        return [("list", _dicts(data))]
    return _dataset(data, source="dataset", split=split)


def _name(data: Any) -> str:
    return str(data) if isinstance(data, (str, Path)) else f"the given {type(data).__name__}"


def _files(paths: list[Path], *, split: str | None) -> Iterator[tuple[str, Rows]]:
    _refuse_split(split, "a file")
    for path in paths:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise UsageError(f"{path}: got a {path.suffix or 'nameless'} file, expected one of {', '.join(READERS)}; convert or rename it")
        yield path.name, reader(path)


def _folder(path: Path, *, split: str | None) -> Iterable[tuple[str, Rows]]:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _saved(path, split=split)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS and not p.name.startswith("."))
    if not files:
        raise DataError(f"{path}: a folder without {', '.join(READERS)} files, and not written by save_to_disk; give one of these")
    return _files(files, split=split)


def _saved(path: Path, *, split: str | None) -> Iterable[tuple[str, Rows]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # every layer below has its own kind of error for a damaged file
        raise DataError(
            f"{path}: a save_to_disk folder that cannot be loaded ({error}); it is probably incomplete, save it again"
        ) from error
    return _dataset(loaded, source=path.name, split=split)


def _hub(name: str, *, split: str | None) -> Iterable[tuple[str, Rows]]:
    import datasets

    if not HUB_ID.fullmatch(name) or Path(name).suffix.lower() in READERS:
        raise UsageError(f"{name}: no such file or folder; check the path")
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the network, the hub and each builder have their own errors
        raise DataError(
            f"{name}: neither a file or folder here nor loadable from the hub ({type(error).__name__}: {error}). "
            "Check the name, the split and the network; where a configuration must be chosen, call datasets.load_dataset yourself "
            "and give the Dataset, or save it with save_to_disk and give the folder."
        ) from error
    return _dataset(loaded, source=name, split=None)  # with a split named, load_dataset has chosen already


def _dataset(data: Any, *, source: str, split: str | None) -> Iterable[tuple[str, Rows]]:
    import datasets

    if isinstance(data, datasets.DatasetDict):
        data = _choose_split(data, split, source=source)
    else:
        _refuse_split(split, f"{source}, a single Dataset,")
    if not isinstance(data, datasets.Dataset):
        raise UsageError(
            f"got data of type {type(data).__name__}, expected a path, a hub id, a datasets.Dataset or DatasetDict, or a list of dicts"
        )
    return [(source, _dataset_rows(data))]


def _choose_split(splits: Mapping[Any, Any], split: str | None, *, source: str) -> datasets.Dataset:
    names = [str(name) for name in splits]
    if split is None and len(names) == 1:
        return splits[names[0]]
    if split not in names:
        raise UsageError(f"{source}: got split {split!r}, expected one of {names}; name one with --split")
    return splits[split]


def _refuse_split(split: str | None, what: str) -> None:
    if split is not None:
        raise UsageError(f"got split {split!r}, but {what} has no splits; leave it out")


# -------------------------------------------------------------------------------------------------------- readers


def _dataset_rows(data: datasets.Dataset, *, batch_size: int = 1000) -> Rows:
    for start in range(0, len(data), batch_size):
        yield from data.select(range(start, min(start + batch_size, len(data)))).to_list()


def _dicts(rows: Iterable[Any]) -> Rows:
    for row in rows:
        yield row if isinstance(row, Mapping) else UnusableRow("undecodable", f"of type {type(row).__name__}, expected a dict")


def _jsonl(path: Path) -> Rows:
    """Line by line with the standard library: pyarrow would read a response "2020-01-01" as a date, and names no line."""
    _refuse_binary(path)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _json_line(line, number)


def _json_line(line: bytes, number: int) -> Mapping[str, Any] | UnusableRow:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return UnusableRow("undecodable", f"line {number}: invalid UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return UnusableRow("undecodable", f"line {number}: invalid JSON ({error})")
    if not isinstance(value, dict):
        return UnusableRow("undecodable", f"line {number}: a JSON {type(value).__name__}, expected an object")
    return value


def _json(path: Path) -> Rows:
    """One JSON array of objects; a .json file with an object per line is read as jsonl."""
    _refuse_binary(path)
    content = path.read_bytes()
    if not content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return _jsonl(path)
    try:
        return _dicts(json.loads(content.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"{path}: not a JSON array ({error}); repair it, or write one object per line (jsonl)") from error


def _csv(path: Path, *, delimiter: str = ",") -> Rows:
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    _refuse_binary(path)
    content = path.read_bytes()
    names = _csv_header(path, content, delimiter)
    bad: list[tuple[int, UnusableRow]] = []

    def keep_note(row: Any) -> str:
        # pyarrow counts the header as row 1
        note = f"line {row.number}: {row.actual_columns} fields, expected {row.expected_columns}"
        bad.append((row.number - 2, UnusableRow("undecodable", note)))
        return "skip"

    try:
        table = pa_csv.read_csv(
            io.BytesIO(content),
            # one block and one thread: a row may span lines, and only then are rows numbered
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=min(len(content) + 1, 2**31 - 1)),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=keep_note),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not readable as {path.suffix} ({error}); save it as UTF-8 with a header line") from error
    return _interleave(table.to_pylist(), bad)


def _csv_header(path: Path, content: bytes, delimiter: str) -> list[str]:
    try:
        names = next(csv.reader(io.StringIO(content.split(b"\n", 1)[0].decode("utf-8-sig")), delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}, line 1: not a header line ({error}); save the file as UTF-8 with the columns' names first") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: columns {twice} occur twice in the header; rename them")
    return names


def _interleave(rows: list[Mapping[str, Any]], bad: list[tuple[int, UnusableRow]]) -> Rows:
    """The rows in the file's order, with the bad ones (position, why) in their places."""
    places = dict(bad)
    good = iter(rows)
    for position in range(len(rows) + len(bad)):
        yield places[position] if position in places else next(good)


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # the handle closes with the generator, also when a limit stops it early
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=10_000):
                yield from _arrow_rows(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not readable as Parquet ({error}); it is probably truncated or of another kind, write it again"
        ) from error


def _arrow_rows(batch: Any) -> Rows:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # a string column may hold any bytes; then row by row, to find which
        rows = [_arrow_row(batch.slice(i, 1)) for i in range(batch.num_rows)]
    yield from rows


def _arrow_row(one: Any) -> Mapping[str, Any] | UnusableRow:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return UnusableRow("undecodable", f"invalid UTF-8 at byte {error.start}")


def _tsv(path: Path) -> Rows:
    return _csv(path, delimiter="\t")


def _refuse_binary(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error}); check that you may read it") from error
    kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if kind or b"\0" in head:
        what = kind or "a binary file, or text that is not UTF-8"
        raise DataError(f"{path}, line 1: this is {what}, expected {path.suffix} text in UTF-8; convert it or give the right file")


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
