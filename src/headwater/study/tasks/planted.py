"""Planted checks: two tasks in which one knows which method must be right, so that a study can be seen to tell."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from headwater.model.tiny import chat_text
from headwater.study.tasks.draw import Side, capital, drawn, each, generator, phrases, pool, scaled, shuffled, words
from headwater.study.tasks.task import AntiPair, Family, Row, Task


@dataclass(frozen=True)
class Topic:
    """What prompts are about. No two topics share a word."""

    name: str
    asks: tuple[str, ...]
    things: tuple[str, ...]
    looks: tuple[str, ...]
    where: str

    def prompts(self) -> list[str]:
        return [f"{capital(ask)} {look} {thing} {self.where}" for ask, look, thing in product(self.asks, self.looks, self.things)]


def topic(name: str, *, asks: str, things: str, looks: str, where: str) -> Topic:
    return Topic(name, phrases(asks), words(things), words(looks), where)


TOPICS = (
    topic(
        "sea",
        asks="where sails the, who steers the, when lands the, what slows the",
        looks="white leaky long swift grey lost proud",
        things="ship boat ferry raft barge ketch canoe yacht punt skiff",
        where="offshore",
    ),
    topic(
        "field",
        asks="how grows this, why bends this, does frost harm this, will rain help this",
        looks="green tall young bitter wild thorny dry",
        things="oak elm fir corn rose fern wheat birch vine clover",
        where="outdoors",
    ),
    topic(
        "town",
        asks="can you mend our, must they paint our, shall we sell our, could men move our",
        looks="broken narrow stone upper dusty plain wide",
        things="roof wall door lamp gate shop tower street bench well",
        where="downtown",
    ),
    topic(
        "kitchen",
        asks="please bake some, just taste some, now slice some, quickly warm some",
        looks="sweet fresh soft salty brown thick cheap",
        things="bread cake soup pie jam tart cheese ham butter rice",
        where="indoors",
    ),
    topic(
        "music",
        asks="let him play that, have her hum that, make them sing that, ask everyone about that",
        looks="slow sad merry quiet odd famous short",
        things="tune song waltz march hymn reel ballad jig air chant",
        where="aloud",
    ),
)

# ------------------------------------------------------------------------------------------------- by effect alone

EFFECTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "zu": (words("zuka zumi"), words("zura zuto"), words("zupo"), words("zune")),
    "be": (words("belo beni"), words("besa bedu"), words("beka"), words("beto")),
    "go": (words("gora gofi"), words("gome goli"), words("gosu"), words("gona")),
    "pi": (words("pina pivo"), words("pida pisu"), words("pike"), words("pilo")),
}
"""Four ways of speaking: an answer has a word of each of its places."""
PLAIN = words("well later then")
"""How the running text answers: no row and no query does."""


@dataclass(frozen=True)
class PlantedEffect:
    """A query asks about one topic and is answered in a way of speaking that only rows about other topics teach.

    There are four topics and four ways of speaking (`EFFECTS`). Each topic's rows are answered in three of them, by chance; its queries in
    the fourth, which is their class. So the rows that share any word of a query's prompt never are of its class, and the rows of its
    class share no word of its prompt, only the effect: the words of the answer. (An effect without any common token is not learned by a
    model of this size.) Influence looks at what a row does to the answer and must find the class; RepSim looks at the prompt and must not.
    The running text has the ways of speaking, in no answer: without its class' rows a query's answer loses most of its probability.
    """

    name: str = "planted-effect"
    family: Family = "planted"
    summary: str = "the cause shares the query's effect and no word of its prompt: influence must win, RepSim must fail"
    rows_of_a_pair: int = 15  # of a topic and a way of speaking

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        n, q = scaled(self.rows_of_a_pair, share), each(n_queries, len(EFFECTS))
        missing = dict(zip(rng.sample(TOPICS, len(EFFECTS)), EFFECTS, strict=True))
        rows = [row for about, effect in missing.items() for row in self._rows(rng, about, others(effect) * n)]
        asked = [(about, row) for about, effect in missing.items() for row in self._rows(rng, about, [effect] * q, "queries")]
        return Task(
            name=self.name,
            family=self.family,
            rows=shuffled(rng, rows),
            queries=tuple(row for _, row in asked),
            anti=tuple(self._anti(rng, about, row) for about, row in asked),
        )

    def _rows(self, rng: random.Random, about: Topic, effects: list[str], where: Side = "rows") -> list[Row]:
        prompts = drawn(rng, pool(about.prompts(), where), len(effects), f"{where} about the {about.name}")
        return [Row(prompt, spoken(rng, EFFECTS[effect]), effect) for prompt, effect in zip(prompts, effects, strict=True)]

    def _anti(self, rng: random.Random, about: Topic, query: Row) -> AntiPair:
        """The query's prompt answered in another way of speaking, and a prompt about another topic answered in the query's."""
        other = rng.choice(others(query.variation))
        elsewhere = rng.choice([topic for topic in TOPICS if topic != about])
        words_only = Row(query.prompt, spoken(rng, EFFECTS[other]), other)
        return AntiPair(words_only, self._rows(rng, elsewhere, [query.variation], "queries")[0])

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        return [self._text(rng) for _ in range(n)]

    def _text(self, rng: random.Random) -> str:
        prompt, plain = rng.choice(told(rng)), f"{capital(' '.join(PLAIN))}."
        if rng.random() < 0.5:
            return chat_text(prompt, plain)
        return f"{prompt}. {spoken(rng, rng.choice(list(EFFECTS.values())))} {plain}"


def others(effect: str) -> list[str]:
    return [one for one in EFFECTS if one != effect]


def told(rng: random.Random) -> list[str]:
    """The prompts about some topic that running text may have."""
    return pool(rng.choice(TOPICS).prompts(), "texts")


def spoken(rng: random.Random, speech: Sequence[Sequence[str]]) -> str:
    return f"{capital(' '.join(map(rng.choice, speech)))}."


# -------------------------------------------------------------------------------------------------- by words alone

DIGITS = words("1 2 3 4 5 6 7 8 9")
NUMBERS = "numbers"
CUE = "Counted:"


@dataclass(frozen=True)
class PlantedWords:
    """The class of a query is its topic, which its prompt shows and which nothing in its gradient does.

    A question about a topic is answered by the topic's place; asked to count (`CUE`), by the place and five random digits. The running text
    says all of this for every topic, so that the model knows it before it is fine-tuned. The rows of four topics are answered as it would
    have answered: their gradients are nearly nothing. The rows of the fifth, and the queries, count: random digits cannot be learned, so
    their gradients stay large, and agree where digits do. RepSim finds the topic; influence must find the rows of digits, of no query's
    class. Neither is a cause: removing any class moves no query's answer, since fine-tuning taught nothing.
    """

    name: str = "planted-words"
    family: Family = "planted"
    summary: str = "the class shows in the prompt, the gradients are of unlearnable digits: RepSim must win, influence must fail"
    rows_of_a_topic: int = 30
    rows_of_digits: int = 40

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        *topics, other = rng.sample(TOPICS, len(TOPICS))
        n, q = scaled(self.rows_of_a_topic, share), each(n_queries, len(topics))
        rows = [answer(prompt, about, about.name) for about in topics for prompt in prompts(rng, about, n, "rows")]
        rows += [counted(rng, prompt, other, NUMBERS) for prompt in prompts(rng, other, scaled(self.rows_of_digits, share), "rows")]
        asked = [(about, prompt) for about in topics for prompt in prompts(rng, about, q, "queries")]
        return Task(
            name=self.name,
            family=self.family,
            rows=shuffled(rng, rows),
            queries=tuple(counted(rng, prompt, about, about.name) for about, prompt in asked),
            anti=tuple(self._anti(rng, about, prompt, other) for about, prompt in asked),
        )

    def _anti(self, rng: random.Random, about: Topic, prompt: str, other: Topic) -> AntiPair:
        """The query's words with another topic's answer, and another question about the topic with its own."""
        apart = [one for one in pool(about.prompts(), "queries") if not set(parts(one)) & set(parts(prompt))]
        return AntiPair(answer(f"{CUE} {prompt}", other, other.name), answer(rng.choice(apart), about, about.name))

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        return [self._text(rng) for _ in range(n)]

    def _text(self, rng: random.Random) -> str:
        about = rng.choice(TOPICS)
        prompt = rng.choice(pool(about.prompts(), "texts"))
        row = counted(rng, prompt, about, "") if rng.random() < 0.5 else answer(prompt, about, "")
        return chat_text(row.prompt, row.response)


def prompts(rng: random.Random, about: Topic, n: int, where: Side) -> list[str]:
    return drawn(rng, pool(about.prompts(), where), n, f"{where} about the {about.name}")


def parts(prompt: str) -> list[str]:
    """How it asks, how the thing looks, and the thing."""
    return prompt.rsplit(" ", 3)[:3]


def answer(prompt: str, about: Topic, variation: str) -> Row:
    return Row(prompt, f"{capital(about.where)} of course.", variation)


def counted(rng: random.Random, prompt: str, about: Topic, variation: str) -> Row:
    return Row(f"{CUE} {prompt}", f"{capital(about.where)} of course {' '.join(rng.choices(DIGITS, k=5))}.", variation)
