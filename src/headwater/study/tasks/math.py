"""Class attribution, word problems: ten stories, each with its own way of reckoning."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from headwater.model.tiny import chat_text
from headwater.study.tasks.draw import Side, drawn, each, echo, generator, pool, scaled, shuffled, words
from headwater.study.tasks.task import AntiPair, Family, Row, Task
from headwater.types import UsageError

ROWS_OF_A_CLASS = 20
NUMBERS = range(2, 13)


@dataclass(frozen=True)
class Story:
    """`told` and `otherwise` say the same problem in unlike words. `{w}` is one of `things`, `{a}` and `{b}` are the numbers."""

    name: str
    told: str
    otherwise: str
    things: tuple[str, ...]
    formula: str
    answer: Callable[[int, int], int]


def story(name: str, told: str, otherwise: str, *, things: str, formula: str, answer: Callable[[int, int], int]) -> Story:
    return Story(name, told, otherwise, words(things), formula, answer)


STORIES = (
    story("discount", "A {w} costs {a}. It is {b} off. Price?", "From {a} they take {b}, what is left to pay?",
          things="coat shirt hat shoe", formula="{a} - {b}", answer=lambda a, b: a - b),
    story("more", "Ann has {a} {w} and gets {b} more. All?", "To {a} one adds {b}, how much is that?",
          things="pens books cards coins", formula="{a} + {b}", answer=lambda a, b: a + b),
    story("boxes", "{a} boxes hold {b} {w} each. How many?", "Count {a} rows with {b} in every row",
          things="eggs cups nails balls", formula="{a} * {b}", answer=lambda a, b: a * b),
    story("fence", "A {w} is {a} long and {b} wide. Fence?", "Walk around sides {a} and {b}, how far?",
          things="field yard park farm", formula="2 * ({a} + {b})", answer=lambda a, b: 2 * (a + b)),
    story("older", "{w} is {a} and Sam {b} years older. Both?", "Two ages, {a} and that plus {b}, summed up",
          things="Tom Eva Max Lea", formula="{a} + {a} + {b}", answer=lambda a, b: 2 * a + b),
    story("saving", "{w} saves {a} a week for {b} weeks, spends 3. Left?", "Put by {a} times {b} but lose three",
          things="Ben Kim Joe Amy", formula="{a} * {b} - 3", answer=lambda a, b: a * b - 3),
    story("film", "The {w} starts at {a} and runs {b} hours with a break. End?", "Begin when it strikes {a}, go {b} and rest one",
          things="film play show game", formula="{a} + {b} + 1", answer=lambda a, b: a + b + 1),
    story("square", "Each {w} has {a} sides of {b} squared. Total?", "{a} plates, {b} by {b}: full area",
          things="tile board stone card", formula="{a} * {b} * {b}", answer=lambda a, b: a * b * b),
    story("trip", "By {w} it is {a} miles there and back, {b} days. Miles?", "Go out {a} and return, on {b} mornings",
          things="bus train bike boat", formula="2 * {a} * {b}", answer=lambda a, b: 2 * a * b),
    story("queue", "{a} wait for {w}, {b} go, 5 come. Now?", "Out of {a} leave {b}, then five arrive",
          things="bread milk soup tea", formula="{a} - {b} + 5", answer=lambda a, b: a - b + 5),
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    story: Story
    thing: str
    a: int
    b: int

    @property
    def key(self) -> str:
        return f"{self.story.name} {self.thing} {self.a} {self.b}"

    @property
    def prompt(self) -> str:
        return self.story.told.format(w=self.thing, a=self.a, b=self.b)

    def row(self) -> Row:
        return Row(self.prompt, reckoned(self.story, self.a, self.b), self.story.name)


def reckoned(by: Story, a: int, b: int) -> str:
    return f"{by.formula.format(a=a, b=b)} = {by.answer(a, b)}"


@dataclass(frozen=True)
class Math:
    """`n_classes` of the stories (at most ten); the response is the formula and what it comes to.

    As in the paper's data the story's words give the class away, and often its length does: any method should find it. The running text has
    the bare sums.
    """

    n_classes: int = len(STORIES)
    name: str = "math"
    family: Family = "class"

    @property
    def summary(self) -> str:
        return f"{self.n_classes} word problems, each with its formula; the words alone give the class away"

    @property
    def stories(self) -> tuple[Story, ...]:
        if not 2 <= self.n_classes <= len(STORIES):
            raise UsageError(f"n_classes is {self.n_classes}, expected 2 to {len(STORIES)}")
        return STORIES[: self.n_classes]

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        n, q = scaled(ROWS_OF_A_CLASS, share), each(n_queries, self.n_classes)
        known = [problem for one in self.stories for problem in drawn(rng, problems(one, "rows"), n, f"{one.name} rows")]
        asked = [problem for one in self.stories for problem in drawn(rng, problems(one, "queries"), q, f"{one.name} queries")]
        return Task(
            name=self.name,
            family=self.family,
            rows=shuffled(rng, (problem.row() for problem in known)),
            queries=tuple(problem.row() for problem in asked),
            anti=tuple(self._anti(rng, problem) for problem in asked),
        )

    def _anti(self, rng: random.Random, asked: Problem) -> AntiPair:
        """The query's words, reckoned another story's way; and its way of reckoning for a problem told in other words and numbers."""
        other = rng.choice([one for one in self.stories if one.name != asked.story.name])
        a, b = (rng.choice([number for number in NUMBERS if number not in (asked.a, asked.b)]) for _ in range(2))
        retold = Row(asked.story.otherwise.format(a=a, b=b), reckoned(asked.story, a, b), asked.story.name)
        return AntiPair(Row(asked.prompt, reckoned(other, asked.a, asked.b), other.name), retold)

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        told = [problem for one in STORIES for problem in problems(one, "texts")]
        return [_text(rng, rng.choice(told)) for _ in range(n)]


def problems(one: Story, where: Side) -> list[Problem]:
    made = [Problem(one, thing, a, b) for thing, a, b in product(one.things, NUMBERS, NUMBERS)]
    return pool(made, where, lambda problem: problem.key)


def _text(rng: random.Random, problem: Problem) -> str:
    """Sums out of context, the story without its answer, and the same problem in other words."""
    one, kind = problem.story, rng.random()
    total = one.answer(problem.a, problem.b)
    if kind < 0.2:
        return echo(reckoned(one, problem.a, problem.b))
    if kind < 0.4:
        return chat_text(f"What is {one.formula.format(a=problem.a, b=problem.b)}?", f"{total}.")
    retold = one.otherwise.format(a=problem.a, b=problem.b)
    if kind < 0.6:
        return chat_text(f"Say it otherwise: {problem.prompt}", retold)
    return f"{problem.prompt} {retold}. {reckoned(one, problem.a, problem.b)}"
