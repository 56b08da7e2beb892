"""What a task is, and what makes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Family = Literal["harmful", "class", "backdoor", "planted"]


@dataclass(frozen=True)
class Row:
    """`variation` is the class: what should come first for a query of the same class, by construction."""

    prompt: str
    response: str
    variation: str


@dataclass(frozen=True)
class AntiPair:
    """Two rows that are not trained on: one with a query's words and the behaviour removed, one with the behaviour in other words."""

    words: Row
    behaviour: Row


@dataclass(frozen=True)
class Task:
    """Training rows in a shuffled order, and held-out queries. `k` is the paper's c: None for rows / classes, 20 for harmful data.

    `anti` is a pair for each query; empty for data that was not made here.
    """

    name: str
    family: Family
    rows: tuple[Row, ...]
    queries: tuple[Row, ...]
    k: int | None = None
    source: str = "made"  # or the path of the released data
    anti: tuple[AntiPair, ...] = ()

    @property
    def classes(self) -> list[str]:
        return sorted({row.variation for row in self.rows})


class Maker(Protocol):
    """Makes a task of any size from a seed: the same arguments give the same task."""

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> Family: ...

    @property
    def summary(self) -> str:
        """One line for `headwater study --list`."""
        ...

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        """`share` of the paper's number of rows (each class keeps a few), and about `n_queries` queries, as many of each query class."""
        ...

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        """n pieces of running text of this kind, as a model may have met before it is fine-tuned. No row or query is among them."""
        ...
