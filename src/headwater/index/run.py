"""A run from its recipe: the main index, then its members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwater.index.build import index_corpus, open_corpus, open_session
from headwater.index.members import build_members, plan_members
from headwater.index.read import StoredIndex
from headwater.model.session import Session
from headwater.progress import say
from headwater.recipe import IndexRecipe


def build_index(
    recipe: IndexRecipe, run: str | Path, *, session: Session | None = None, data: Any = None, append: bool = False
) -> StoredIndex:
    """Index a corpus into `run`, or go on with an index that was interrupted, or (with `append`) add a corpus to one; then its members.

    `session` and `data` stand in for what the recipe names, where they are at hand already. Cost: less than one training pass over the
    rows, and as much again for each member (an Adam member: about a training pass). Raises UsageError, DataError, LayoutMismatch or
    IntegrityError before anything is written or changed.
    """
    plan_members(recipe)  # what it lacks is said before the long work
    session = session or open_session(recipe.model)
    corpus = open_corpus(recipe.data, session, data)
    say(corpus.report.summary())
    main = index_corpus(recipe, Path(run), session=session, corpus=corpus, append=append)
    tokenizer = session.tokenizer
    del session  # the members' models come one at a time
    build_members(recipe, main, corpus, tokenizer)
    return main
