"""What is doubtful about the task before any model has seen it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwater.atomic import read_json
from headwater.corpus.encode import SANE_MAX_LENGTH, load_corpus
from headwater.index.build import encoding
from headwater.recipe import IndexRecipe
from headwater.study.parts.part import Outcome, place
from headwater.study.tasks.lint import lint
from headwater.study.tasks.released import siblings
from headwater.study.tasks.task import Task
from headwater.study.world import World

STATUS = {"ok": 0.0, "unknown": 0.0, "warn": 1.0, "fail": 2.0}


@dataclass(frozen=True)
class Lint:
    """The findings of `headwater.study.tasks.lint`, and one cell for each: 0 where nothing is wrong, 1 for a warning, 2 for a fault."""

    name = "lint"
    summary = "faults of the data: identical splits, unlike triggers or labels, sorted blocks, truncation, lexical shortcuts"
    metrics = (
        "identical splits",
        "rows in both splits",
        "labels",
        "triggers",
        "order",
        "truncation",
        "lexical prompt",
        "lexical response",
        "length",
    )

    def unfit(self, world: World) -> str:
        return ""

    def __call__(self, world: World) -> Outcome:
        here = place(self, world)
        n_tokens, max_length = lengths(world)
        findings = lint(world.task, n_tokens=n_tokens, max_length=max_length, others=beside(world))
        cells = [here.cell("data", finding.name, STATUS[finding.status], unit="0 ok, 1 warn, 2 fail") for finding in findings]
        return Outcome(cells, findings, facts={"template": world.model.chat_template})


def lengths(world: World) -> tuple[list[int], int | None]:
    """Tokens of each row as the model would see it if nothing were cut, the template's among them; and where the model cuts."""
    options = IndexRecipe.parse(read_json(world.run / "run.json", way_out="Index again.")["recipe"]).data
    settings = encoding(options, world.session)
    uncut = {**settings, "max_length": SANE_MAX_LENGTH}
    whole = load_corpus(options.source, world.session.tokenizer, columns=options.columns, **uncut)
    return [example.n_tokens for example in whole.examples], settings["max_length"]


def beside(world: World) -> list[Task]:
    """The data sets that lie beside a released one, of the same size; none for a task that was made."""
    if not Path(world.task.source).exists():
        return []
    return siblings(world.task.source, share=world.size.share, n_queries=world.size.queries)
