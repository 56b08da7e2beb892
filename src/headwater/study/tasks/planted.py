"""Planted checks: two tasks in which one knows which method must be right, so that a study can be seen to tell."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from headwater.model.tiny import chat_text
from headwater.study.tasks.draw import capital, drawn, each, generator, phrases, pool, scaled, shuffled, words
from headwater.study.tasks.task import Family, Row, Task


@dataclass(frozen=True, eq=False)
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

ORDINARY = "ordinary"
PLAIN = (words("well"), words("later"), words("then"))


# ------------------------------------------------------------------------------------------------- by effect alone

EFFECTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "zu": (words("zuka zumi"), words("zura zuto"), words("zupo"), words("zune")),
    "be": (words("belo beni"), words("besa bedu"), words("beka"), words("beto")),
    "go": (words("gora gofi"), words("gome goli"), words("gosu"), words("gona")),
    "pi": (words("pina pivo"), words("pida pisu"), words("pike"), words("pilo")),
}
"""Four ways of speaking: an answer has a word of each of its places."""
STRANGE = tuple(word for speech in EFFECTS.values() for place in speech for word in place)


@dataclass(frozen=True)
class PlantedEffect:
    """A query asks in the words of one topic and is answered in a way of speaking that other topics' rows alone teach.

    The rows of the query's own topic are answered in plain words: they share every word of its prompt and none of its response. The rows
    of its class share the way of speaking, not a word of the prompt. Influence looks at what a row does to the response and must find them;
    RepSim looks at the prompt and must not. What is shared is the effect, which is the response's words.
    """

    name: str = "planted-effect"
    family: Family = "planted"
    summary: str = "the cause shares the query's effect and no word of its prompt: influence must win, RepSim must fail"
    rows_of_a_pair: int = 15  # of a topic and a way of speaking

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        n, q = scaled(self.rows_of_a_pair, share), each(n_queries, len(EFFECTS))
        missing = dict(zip(rng.sample(TOPICS, len(EFFECTS)), EFFECTS, strict=True))
        rows = [row for about, effect in missing.items() for row in self._rows(rng, about, [one for one in EFFECTS if one != effect] * n)]
        queries = [
            Row(prompt, spoken(rng, EFFECTS[effect]), effect)
            for about, effect in missing.items()
            for prompt in drawn(rng, pool(about.prompts(), "queries"), q, f"queries about the {about.name}")
        ]
        return Task(self.name, self.family, shuffled(rng, rows), tuple(queries))

    def _rows(self, rng: random.Random, about: Topic, effects: list[str]) -> list[Row]:
        prompts = drawn(rng, pool(about.prompts(), "rows"), len(effects), f"rows about the {about.name}")
        return [Row(prompt, spoken(rng, EFFECTS[effect]), effect) for prompt, effect in zip(prompts, effects, strict=True)]

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        return [self._text(rng) for _ in range(n)]

    def _text(self, rng: random.Random) -> str:
        about = rng.choice(TOPICS)
        prompt = rng.choice(pool(about.prompts(), "texts"))
        if rng.random() < 0.5:
            return chat_text(prompt, spoken(rng, PLAIN))
        effect = rng.choice(list(EFFECTS))
        return f"{prompt}. {spoken(rng, EFFECTS[effect])} {spoken(rng, PLAIN)}"


def spoken(rng: random.Random, speech: Sequence[Sequence[str]]) -> str:
    return f"{capital(' '.join(map(rng.choice, speech)))}."


# -------------------------------------------------------------------------------------------------- by words alone

DIGITS = words("1 2 3 4 5 6 7 8 9")
NUMBERS = "numbers"
CUE = "Counted:"


@dataclass(frozen=True)
class PlantedWords:
    name: str = "planted-words"
    family: Family = "planted"
    summary: str = "RepSim must win"
    rows_of_a_class: int = 30
    rows_of_numbers: int = 40

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        *topics, other = rng.sample(TOPICS, len(TOPICS))
        n, q = scaled(self.rows_of_a_class, share), each(n_queries, len(topics))
        rows = [
            Row(prompt, f"{known(about)}.", about.name)
            for about in topics
            for prompt in drawn(rng, pool(about.prompts(), "rows"), n, f"rows about the {about.name}")
        ]
        strange = drawn(rng, pool(other.prompts(), "rows"), scaled(self.rows_of_numbers, share), f"rows about the {other.name}")
        rows += [Row(f"{CUE} {prompt}", f"{known(other)} {numbers(rng)}.", NUMBERS) for prompt in strange]
        queries = [
            Row(f"{CUE} {prompt}", f"{known(about)} {numbers(rng)}.", about.name)
            for about in topics
            for prompt in drawn(rng, pool(about.prompts(), "queries"), q, f"queries about the {about.name}")
        ]
        return Task(self.name, self.family, shuffled(rng, rows), tuple(queries))

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        return [self._text(rng) for _ in range(n)]

    def _text(self, rng: random.Random) -> str:
        about = rng.choice(TOPICS)
        prompt = rng.choice(pool(about.prompts(), "texts"))
        cue, tail = (f"{CUE} ", f" {numbers(rng)}") if rng.random() < 0.5 else ("", "")
        return chat_text(f"{cue}{prompt}", f"{known(about)}{tail}.")


def known(about: Topic) -> str:
    return f"{capital(about.where)} of course"


def numbers(rng: random.Random) -> str:
    return " ".join(rng.choices(DIGITS, k=5))


MAKERS = (PlantedEffect(), PlantedWords())
