"""What is doubtful about the task before any model has seen it."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.study.parts.part import Outcome, place
from headwater.study.tasks.lint import lint
from headwater.study.world import World

STATUS = {"ok": 0.0, "unknown": 0.0, "warn": 1.0, "fail": 2.0}


@dataclass(frozen=True)
class Lint:
    """The findings of `headwater.study.tasks.lint`, and one cell for each: 0 where nothing is wrong, 1 for a warning, 2 for a fault."""

    name = "lint"
    summary = "faults of the data: identical splits, unlike triggers or labels, sorted blocks, truncation, lexical shortcuts"

    def unfit(self, world: World) -> str:
        return ""

    def __call__(self, world: World) -> Outcome:
        here, tokenizer = place(self, world), world.session.tokenizer
        template = world.model.chat_template

        def n_tokens(row) -> int:
            return len(tokenizer(row.prompt + " " + row.response)["input_ids"])

        findings = lint(world.task, n_tokens=n_tokens, max_length=world.model.max_length)
        cells = [here.cell("data", finding.name, STATUS[finding.status], unit="0 ok, 1 warn, 2 fail") for finding in findings]
        return Outcome(cells, findings, facts={"template": template})
