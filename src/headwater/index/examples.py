"""The examples behind an index's rows: encoded again from the data that its records name, and held against the ids that are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from headwater.atomic import read_json
from headwater.corpus import count_copies, number_copies
from headwater.index.build import IN_MEMORY, open_corpus
from headwater.index.read import StoredIndex
from headwater.model.session import Session
from headwater.recipe import IndexRecipe
from headwater.types import Example, IntegrityError, UsageError


def stored_examples(index: StoredIndex, session: Session, ids: Sequence[str] | None = None, *, data: Any = None) -> list[Example]:
    """The examples of these rows, or of all live rows in their order. Cost: reading and encoding the corpora of the run.

    `data` stands in for a corpus that was given in memory. Raises UsageError where it is needed, DataError for data that cannot be read,
    and IntegrityError where the data no longer has a row that is stored.
    """
    found: dict[str, Example] = {}
    for recipe in _recipes(index.run):
        corpus = open_corpus(recipe.data, session, _given(recipe, data, index.run))
        found |= {example.id: example for example in number_copies(corpus.examples, count_copies(found))}
    wanted = index.ids if ids is None else ids
    if missing := [row_id for row_id in wanted if row_id not in found]:
        raise IntegrityError(
            f"{len(missing)} of {len(wanted)} rows of {index.run} are not in its data any more ({', '.join(missing[:3])}). Likely cause: "
            "the data, or the tokenizer, changed since it was indexed. Put it back, or index again."
        )
    return [found[row_id] for row_id in wanted]


def _recipes(run: Path) -> Iterator[IndexRecipe]:
    """run.json, then run-2.json, ... of the corpora appended to it."""
    later = sorted(run.glob("run-*.json"), key=lambda path: int(path.stem.removeprefix("run-")))
    for path in (run / "run.json", *later):
        yield IndexRecipe.parse(read_json(path, way_out="It says how the rows were made: restore it from a copy.")["recipe"])


def _given(recipe: IndexRecipe, data: Any, run: Path) -> Any:
    if recipe.data.source != IN_MEMORY:
        return None
    if data is None:
        raise UsageError(f"the rows of {run} were given in memory, and their tokens are not stored: give the same data again (data=...)")
    return data
