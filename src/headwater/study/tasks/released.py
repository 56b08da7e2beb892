"""Data sets from files in the place of made tasks: those released with the paper, or any of the same form."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.atomic import read_json
from headwater.corpus.read import read_rows
from headwater.study.tasks.draw import each, scaled
from headwater.study.tasks.task import Family, Row, Task
from headwater.types import DataError, UsageError

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("mixedS", "mixedM", "mixedL"), "harmful"),
    **dict.fromkeys(("backdoor", "multibackdoor", "multibackdoor5"), "backdoor"),
}
"""Of the paper's data sets, by name; any other is one of classes."""

SAVED, TRAIN, TEST = "dataset_dict.json", "-train.parquet", "-test.parquet"
PROMPT = ("prompts", "prompt")


def find(folder: str | Path, *, share: float = 1.0, n_queries: int | None = None) -> dict[str, Task]:
    """Every data set in a folder by name, in alphabetical order; `share` and `n_queries` as in `read`.

    The folder holds `datasets.save_to_disk` folders with the splits train and test, or NAME-train.parquet and NAME-test.parquet, or is
    itself such a saved folder. Raises UsageError where there is no such folder or no data set in it, DataError as `read` does.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the one that holds the data sets")
    found = [read(source, share=share, n_queries=n_queries) for source in _sources(folder)]
    if not found:
        raise UsageError(
            f"{folder}: no data set in it; expected folders that save_to_disk wrote (with {SAVED}), or NAME{TRAIN} and NAME{TEST}. "
            "Likely cause: it is the folder above or below the right one"
        )
    if twice := [name for name, n in Counter(task.name for task in found).items() if n > 1]:
        raise DataError(f"{folder}: {twice[0]} is there twice, as a folder and as parquet files; move one away")
    return {task.name: task for task in found}


def read(source: str | Path, *, share: float = 1.0, n_queries: int | None = None) -> Task:
    """One data set, from its saved folder or its NAME-train.parquet; that path is the task's `source`.

    Columns: prompts (or prompt), response, variation. The first `share` of each class's rows are taken, at least four where the class has
    them, and about `n_queries` queries, the first ones of each class; the order is that of the data. k of harmful data is the number of
    rows of the queries' classes: the paper's 20 where all are taken.

    Raises DataError for a split or a column that is missing, a row without text, or no rows.
    """
    source = Path(source)
    name = source.resolve().name.removesuffix(TRAIN)
    rows, queries = (_rows(source, split) for split in ("train", "test"))
    family = FAMILIES.get(name, "class")
    n_each = None if n_queries is None else each(n_queries, len({query.variation for query in queries}))
    kept = _first(rows, {variation: scaled(n, share) for variation, n in _counts(rows).items()})
    asked = _first(queries, {variation: n if n_each is None else n_each for variation, n in _counts(queries).items()})
    k = sum(row.variation in _counts(asked) for row in kept) if family == "harmful" else None
    return Task(name, family, kept, asked, k=k, source=str(source))


def siblings(source: str | Path, *, share: float = 1.0, n_queries: int | None = None) -> list[Task]:
    """The other data sets that lie beside this one. What cannot be read is left out: it is not what was asked for."""
    here, found = Path(source).resolve(), list[Task]()
    for other in _sources(here.parent):
        with contextlib.suppress(DataError):
            found += [read(other, share=share, n_queries=n_queries)] if other != here else []
    return found


def _sources(folder: Path) -> Iterator[Path]:
    """What `read` takes: this saved folder, or those in the folder and the train files. Of a test file alone too, for `read` to refuse."""
    if (folder / SAVED).exists():
        yield folder
        return
    yield from sorted(path.parent for path in folder.glob(f"*/{SAVED}"))
    names = {path.name.removesuffix(end) for end in (TRAIN, TEST) for path in folder.glob(f"*{end}")}
    yield from (folder / f"{name}{TRAIN}" for name in sorted(names))


def _rows(source: Path, split: str) -> tuple[Row, ...]:
    if source.is_dir():
        where, raw = f"{source}, split {split}", _saved(source, split)
    else:
        path = source.with_name(source.name.removesuffix(TRAIN) + f"-{split}.parquet")
        if not path.is_file():
            raise DataError(f"{path}: no such file; a data set is NAME{TRAIN} and NAME{TEST} side by side")
        where, raw = str(path), read_rows(path)
    if raw.undecodable:
        raise DataError(f"{where}: row {raw.undecodable[0].row} cannot be read ({raw.undecodable[0].note}); write the file again")
    prompt = _prompt_column(where, [name for names in raw.columns.values() for name in names])
    return tuple(_row(where, one.row, one.values, prompt) for one in raw.rows)


def _saved(source: Path, split: str) -> Any:
    splits = read_json(source / SAVED, way_out="Save the data set again.")["splits"]
    if split not in splits:
        raise DataError(f"{source}: there is no split {split!r}, only {', '.join(splits)}; a data set has train and test")
    return read_rows(source, split=split)


def _prompt_column(where: str, columns: Sequence[str]) -> str:
    prompt = next((name for name in PROMPT if name in columns), None)
    missing = [name for name in ("response", "variation") if name not in columns]
    if prompt is None or missing:
        lacking = [*([] if prompt else [" or ".join(PROMPT)]), *missing]
        raise DataError(
            f"{where}: no column {', no column '.join(lacking)}; there are: {', '.join(columns)}. A data set has a prompt, a response and "
            "a variation (the class) for each row: rename the columns"
        )
    return prompt


def _row(where: str, number: int, values: Mapping[str, Any], prompt: str) -> Row:
    """A class may be a number; a text must be one."""
    response, variation = values.get("response"), values.get("variation")
    if not isinstance(values.get(prompt), str) or not isinstance(response, str) or variation is None:
        raise DataError(f"{where}: row {number} has no {prompt}, response or variation; fill it in or leave the row out")
    return Row(values[prompt], response, str(variation))


def _counts(rows: Sequence[Row]) -> Counter[str]:
    return Counter(row.variation for row in rows)


def _first(rows: Sequence[Row], n_of: Mapping[str, int]) -> tuple[Row, ...]:
    """The first so many rows of each class, in the order of all."""
    seen: Counter[str] = Counter()
    kept: list[Row] = []
    for row in rows:
        seen[row.variation] += 1
        if seen[row.variation] <= n_of[row.variation]:
            kept.append(row)
    return tuple(kept)
