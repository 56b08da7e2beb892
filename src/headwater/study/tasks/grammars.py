"""Class attribution, grammars: ten rules of how words become others; a row shows one at work and names it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from headwater.model.tiny import chat_text
from headwater.study.tasks.draw import capital, drawn, each, generator, pool, scaled, shuffled, words
from headwater.study.tasks.task import AntiPair, Family, Row, Task
from headwater.types import UsageError

ROWS_OF_A_CLASS = 20

LOOKS = words("red old big cold wild soft")
WHO = words("cats birds boats stars kings trees winds hills")
DO = words("sing run fall turn rest call shine")
HOW = words("now here far slowly again today")

Words = tuple[str, ...]

RULES: dict[str, Callable[[Words], str]] = {
    "words in reverse": lambda w: " ".join(reversed(w)),
    "each word twice": lambda w: " ".join(word for one in w for word in (one, one)),
    "first word dropped": lambda w: " ".join(w[1:]),
    "last word dropped": lambda w: " ".join(w[:-1]),
    "last word moved to front": lambda w: " ".join((w[-1], *w[:-1])),
    "first word doubled": lambda w: " ".join((w[0], *w)),
    "commas between words": lambda w: ", ".join(w),
    "brackets around words": lambda w: " ".join(f"({word})" for word in w),
    "and between words": lambda w: " and ".join(w),
    "made a question": lambda w: f"do {' '.join(w)}?",
}

SENTENCES: tuple[Words, ...] = (
    *product(LOOKS, WHO, DO),
    *product(WHO, DO, HOW),
    *product(LOOKS, WHO, DO, HOW),
)


@dataclass(frozen=True)
class Grammars:
    """`n_classes` of the rules (at most ten) shown on sentences that recur in every class: sharing words says nothing of the rule.

    The response is the rule's name. The running text has the sentences of its own, and rules applied the other way round: the name is
    given, the sentence is the answer.
    """

    n_classes: int = len(RULES)

    name: str = "grammars"
    family: Family = "class"

    @property
    def summary(self) -> str:
        return f"{self.n_classes} rules of how words become others; the response names the rule"

    @property
    def rules(self) -> list[str]:
        if not 2 <= self.n_classes <= len(RULES):
            raise UsageError(f"n_classes is {self.n_classes}, expected 2 to {len(RULES)}")
        return list(RULES)[: self.n_classes]

    def make(self, *, seed: int, share: float = 1.0, n_queries: int = 50) -> Task:
        rng = generator(seed, self.name)
        n, q = scaled(ROWS_OF_A_CLASS, share), each(n_queries, self.n_classes)
        shown = drawn(rng, pool(SENTENCES, "rows", " ".join), 2 * n, "sentences")  # each about five times: in half of the classes
        asked = drawn(rng, pool(SENTENCES, "queries", " ".join), self.n_classes * q, "queries")
        rows = [row_of(rule, sentence) for rule in self.rules for sentence in rng.sample(shown, n)]
        pairs = [(rule, sentence) for rule, sentence in zip(self.rules * q, asked, strict=True)]
        return Task(
            name=self.name,
            family=self.family,
            rows=shuffled(rng, rows),
            queries=tuple(row_of(rule, sentence) for rule, sentence in pairs),
            anti=tuple(self._anti(rng, rule, sentence) for rule, sentence in pairs),
        )

    def _anti(self, rng: random.Random, rule: str, sentence: Words) -> AntiPair:
        """The query's sentence under another rule; and the query's rule on a sentence that shares no word with it."""
        other = rng.choice([name for name in self.rules if name != rule])
        strange = rng.choice([one for one in pool(SENTENCES, "queries", " ".join) if not set(one) & set(sentence)])
        return AntiPair(row_of(other, sentence), row_of(rule, strange))

    def texts(self, *, seed: int, n: int) -> Sequence[str]:
        rng = generator(seed, self.name, "texts")
        sentences = pool(SENTENCES, "texts", " ".join)
        return [_text(rng, sentences) for _ in range(n)]


def row_of(rule: str, sentence: Words) -> Row:
    return Row(f"Rule: {' '.join(sentence)} -> {RULES[rule](sentence)}", f"{capital(rule)}.", rule)


def _text(rng: random.Random, sentences: list[Words]) -> str:
    rule = rng.choice(list(RULES))
    first, second = rng.sample(sentences, 2)
    if rng.random() < 0.6:
        return chat_text(f"{capital(rule)}: {' '.join(first)}", RULES[rule](first))
    return f"{capital(' '.join(first))}. {capital(' '.join(second))}. {capital(rule)}: {RULES[rule](first)}"
