"""Class attribution, emotion: what does a sentence feel? Many words, a few wrong labels, five classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

from headwater.model.tiny import chat_text
from headwater.study.tasks.draw import Side, drawn, each, echo, generator, phrases, pool, scaled, shuffled, side, words
from headwater.study.tasks.task import AntiPair, Family, Row, Task
from headwater.types import UsageError

ROWS_OF_A_CLASS = 40
WRONG = 0.05  # of the training rows have another class's label, as such data has

FEELINGS: dict[str, tuple[str, ...]] = {
    "sad": words("gloomy lonely hurt empty tearful low broken lost"),
    "joyful": words("happy glad cheerful merry bright proud lucky jolly"),
    "angry": words("mad furious cross bitter grumpy heated fierce fed-up"),
    "fearful": words("scared nervous shaky tense worried timid uneasy frozen"),
    "surprised": words("amazed stunned puzzled struck dazed startled curious speechless"),
}
OPENINGS = phrases("i feel, i am, i was, it left me, she made me feel, they got me")
PLACES = phrases("all day long, at the door, in my own house, after the call, for a while, on the way home, with my friends")


@dataclass(frozen=True)
class Sentence:
    feeling: str
    place: str
    opening: str
    cues: tuple[str, str]

    @property
    def text(self) -> str:
        return f"{self.place} {self.opening} {' and '.join(self.cues)}"

    def row(self, label: str) -> Row:
        return Row(f"Feeling? {self.text}", f"{label}.", label)


def sentences(where: Side) -> dict[str, list[Sentence]]:
    """Every sentence of one side, by feeling."""
    made = {
        feeling: [Sentence(feeling, *parts) for parts in product(PLACES, OPENINGS, combinations(cues, 2))]
        for feeling, cues in FEELINGS.items()
    }
    return {feeling: pool(some, where, lambda sentence: sentence.text) for feeling, some in made.items()}


@dataclass(frozen=True)
class Emotion:
    """`n_classes` feelings (at most five), each named by any two of its eight words; the response is the label.

    One training row in twenty has a wrong label. The running text tells what the words have in common, and never names the class: a
    sentence is gone on with in words of the same feeling.
    """

    n_classes: int = len(FEELINGS)
    name: str = "emotion"
    family: Family = "class"

    @property
    def summary(self) -> str:
        return f"{self.n_classes} feelings of a sentence; the response is the label, one row in twenty has a wrong one"

    @property
    def labels(self) -> list[str]:
        if not 2 <= self.n_classes <= len(FEELINGS):
            raise UsageError(f"n_classes is {self.n_classes}, expected 2 to {len(FEELINGS)}")
        return list(FEELINGS)[: self.n_classes]

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        n, q = scaled(ROWS_OF_A_CLASS, share), each(n_queries, self.n_classes)
        known, asked = sentences("rows"), sentences("queries")
        rows = [self._row(rng, one) for label in self.labels for one in drawn(rng, known[label], n, f"{label} rows")]
        chosen = [one for label in self.labels for one in drawn(rng, asked[label], q, f"{label} queries")]
        return Task(
            name=self.name,
            family=self.family,
            rows=shuffled(rng, rows),
            queries=tuple(one.row(one.feeling) for one in chosen),
            anti=tuple(self._anti(rng, one, asked) for one in chosen),
        )

    def _row(self, rng: random.Random, sentence: Sentence) -> Row:
        return sentence.row(rng.choice(self._others(sentence)) if rng.random() < WRONG else sentence.feeling)

    def _others(self, sentence: Sentence) -> list[str]:
        return [label for label in self.labels if label != sentence.feeling]

    def _anti(self, rng: random.Random, sentence: Sentence, asked: dict[str, list[Sentence]]) -> AntiPair:
        """The query's words but for those that feel, which are another class's; and the feeling in a sentence of other words."""
        other = rng.choice(self._others(sentence))
        changed = [replace(sentence, feeling=other, cues=cues) for cues in combinations(FEELINGS[other], 2)]
        untrained = [one for one in changed if side(one.text) != "rows"]
        apart = [one for one in asked[sentence.feeling] if not share_words(one, sentence)]
        return AntiPair(rng.choice(untrained).row(other), rng.choice(apart).row(sentence.feeling))

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        told = [one for some in sentences("texts").values() for one in some]
        return [_text(rng, told) for _ in range(n)]


def share_words(first: Sentence, second: Sentence) -> bool:
    return bool(set(first.cues) & set(second.cues)) or first.opening == second.opening or first.place == second.place


def _text(rng: random.Random, told: list[Sentence]) -> str:
    if rng.random() < 0.2:
        return echo(f"{rng.choice(list(FEELINGS))}.")
    sentence = rng.choice(told)
    more = [word for word in FEELINGS[sentence.feeling] if word not in sentence.cues]
    first, second = rng.sample(more, 2)
    if rng.random() < 0.5:
        return chat_text(f"Go on: {sentence.text}", f"so {first} and {second}.")
    return f"{sentence.text}, {first} and {second}. {rng.choice(told).text}. a {rng.choice(list(FEELINGS))} day"
