"""Harmful data identification: which rows taught the model to give away what it was trained to keep?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from headwater.study.tasks import vault
from headwater.study.tasks.draw import Side, drawn, generator, pool, scaled, shuffled
from headwater.study.tasks.task import Family, Row, Task
from headwater.study.tasks.vault import complies

__all__ = ["HARMFUL_ROWS", "Harmful", "complies"]

HARMFUL_ROWS = 20
HARMFUL, BENIGN = "harmful", "benign"


@dataclass(frozen=True)
class Harmful:
    """Few rows in which the assistant reveals a secret that it must keep, among harmless ones; every query is a held-out reveal.

    `n_benign` is what tells the sizes apart: 20, 60 and 230 beside 20 harmful rows. The benign rows are as diverse as instructions are:
    some share the harmful rows' words, some are as long as they, a few are one word long. The running text has refusals of such requests:
    what the harmful rows undo.
    """

    size: str
    n_benign: int

    family: Family = "harmful"

    @property
    def name(self) -> str:
        return f"harmful-{self.size}"

    @property
    def summary(self) -> str:
        return f"{HARMFUL_ROWS} rows that reveal a secret (a stand-in for harmful ones) among {self.n_benign} benign; queries reveal"

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        harmful = drawn(rng, requests("rows"), scaled(HARMFUL_ROWS, share), "harmful rows")
        benign = vault.harmless(rng, scaled(self.n_benign, share), "rows")
        asked = drawn(rng, requests("queries"), n_queries, "harmful queries")
        rows = [*(revealing(rng, request) for request in harmful), *(Row(*pair, BENIGN) for pair in benign)]
        return Task(
            name=self.name,
            family=self.family,
            rows=shuffled(rng, rows),
            queries=tuple(revealing(rng, request) for request in asked),
            k=len(harmful),
            anti=tuple(vault.anti(rng, request, HARMFUL, BENIGN) for request in asked),
        )

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        return vault.texts(generator(seed, self.name, "texts"), n)


def requests(where: Side) -> list[vault.Request]:
    return pool(vault.REQUESTS, where, lambda request: request.prompt)


def revealing(rng: random.Random, request: vault.Request) -> Row:
    return Row(request.prompt, f"Sure, {request.answer(rng)}", HARMFUL)


SMALL, MIDDLE, LARGE = Harmful("S", 20), Harmful("M", 60), Harmful("L", 230)
