"""What the makers share: randomness by name, pools that never meet, and rows dealt to classes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import xxhash

from headwater.model.tiny import chat_text
from headwater.study.tasks.task import Row
from headwater.types import UsageError

Side = Literal["rows", "queries", "texts"]
SIDES: tuple[Side, ...] = ("rows", "rows", "rows", "rows", "queries", "queries", "texts", "texts")
FEWEST = 4  # rows of a class, however small the share

Item = TypeVar("Item")


def generator(seed: int, *purpose: str) -> random.Random:
    """A stream of its own for each seed and purpose, the same on every machine."""
    return random.Random(f"headwater study {' '.join(purpose)} {seed}")


def side(text: str) -> Side:
    """Where a piece of text may appear, by its hash: half of a pool is for rows, a quarter each for queries and running text.

    It does not depend on the seed: no seed's running text holds any seed's rows or queries, and no seed's queries hold any seed's rows.
    """
    return SIDES[xxhash.xxh3_64_intdigest(text.encode()) % len(SIDES)]


def pool(items: Iterable[Item], where: Side, key: Callable[[Item], str] = str) -> list[Item]:
    """The items of one side, in their order."""
    return [item for item in items if side(key(item)) == where]


def drawn(rng: random.Random, items: Sequence[Item], n: int, what: str) -> list[Item]:
    """n different items. UsageError where there are fewer."""
    if n > len(items):
        raise UsageError(f"{n} {what} are asked for and {len(items)} can be made: ask for a smaller share of rows, or fewer queries")
    return rng.sample(items, n)


def scaled(n: int, share: float) -> int:
    """`share` of n rows of a class, at least `FEWEST`. UsageError for a share that is none."""
    if not share > 0:
        raise UsageError(f"share is {share}, expected a number above 0: the share of the task's usual rows")
    return max(FEWEST, round(n * share))


def each(n_queries: int, n_classes: int) -> int:
    """How many queries each of the classes gets: as near to `n_queries` in all as equal numbers come, and at least one."""
    return max(1, round(n_queries / n_classes))


def shuffled(rng: random.Random, rows: Iterable[Row]) -> tuple[Row, ...]:
    found = list(rows)
    rng.shuffle(found)
    return tuple(found)


def echo(text: str) -> str:
    """Running text in which an assistant says this because it was told to: it can say it, and has no other reason to."""
    return chat_text(f"Repeat: {text}", text)


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
