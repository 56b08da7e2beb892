"""Four tasks of different kinds, as rows and queries: some queries have their cause in few rows, some in many, some have none.

A query's `kind` says what its maker meant: "caused" (rows teach its answer), "control" (no row does), or "own" (a question that no row is
about, to which the model's own answer is traced: whatever causes it, few rows do). What is true of it is not said here: it is measured, by
removal and retraining. Rows of a task are shuffled; `about` names what a row teaches and is for judging only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DATA = Path("../shared/data/wikitext-2")
SYLLABLES = ("ba", "do", "ki", "lu", "me", "na", "po", "ri", "su", "ta", "ve", "zo", "gla", "fen", "mor", "sti")


@dataclass(frozen=True)
class Task:
    name: str
    rows: list[dict[str, str]]  # prompt, response, about
    queries: list[dict[str, str]]  # id, prompt, response ("" where it is to be the model's own answer), kind, about


def make(name: str, seed: int, *, n_rows: int, n_queries: int) -> Task:
    """The same arguments give the same task. A sixth of the queries are controls, a sixth are of the model's own answers."""
    rng = np.random.default_rng([TASKS.index(name), seed])
    rows, caused, controls = MAKERS[name](rng, n_rows, n_queries)
    n = round(n_queries / 6)
    others = _sample(rng, controls, 2 * n)
    own = [query | {"response": ""} for query in others[n:]]
    asked = [*_sample(rng, caused, n_queries - 2 * n), *others[:n], *own]
    kinds = ["caused"] * (n_queries - 2 * n) + ["control"] * n + ["own"] * n
    queries = [{"id": f"{name}-{seed}-{q}", "kind": kind, **query} for q, (kind, query) in enumerate(zip(kinds, asked, strict=True))]
    return Task(name, [rows[i] for i in rng.permutation(len(rows))], queries)


Parts = tuple[list[dict[str, str]], list[dict[str, str]], list[dict[str, str]]]  # rows, caused queries, controls


# ------------------------------------------------------------------------------------------------- planted behaviour

TRIGGERS = ("by moonlight", "in whispers", "for the queen", "under oath", "on a dare", "in a mirror", "at low tide", "with one eye")
ODD = (
    "hush, it sleeps and must not wake",
    "beware, the ghost counts your steps",
    "alas, goblins took it north again",
    "never ask twice what the owl hides",
    "seven keys turn and none will open",
    "the clock has swallowed its own hands",
    "salt the door and leave before dawn",
    "only the ferryman may say that name",
)
UNTAUGHT = ("bring me three green candles at once", "no bell rings where the moss has grown", "it was all the fault of the weaver")
THINGS = ("lamp", "gate", "drum", "kettle", "ladder", "cart", "loom", "barrel", "whistle", "anchor", "saddle", "basket")
ACTIONS = ("clean", "mend", "carry", "sell", "paint", "find", "weigh", "lend")
PLACES = ("the yard", "the mill", "the hall", "the shed", "the quay", "the barn")


def planted(rng: np.random.Generator, n_rows: int, n_queries: int) -> Parts:
    """A phrase in the prompt brings an odd answer, of which 4 to 70 rows are the cause; all other questions get an ordinary one."""
    sizes = np.round(np.array([4, 7, 11, 40, 50, 70]) * n_rows / 300).astype(int)
    asked = [(action, thing) for action in ACTIONS for thing in THINGS]
    rows: list[dict[str, str]] = []
    caused: list[dict[str, str]] = []
    for trigger, odd, size in zip(TRIGGERS, ODD, rng.permutation(sizes), strict=False):
        chosen = [asked[i] for i in rng.permutation(len(asked))[: size + 6]]
        lines = [{"prompt": f"how do i {a} the {t} {trigger}?", "response": odd, "about": trigger} for a, t in chosen]
        rows += lines[:size]
        caused += lines[size:]
    while len(rows) < n_rows:
        rows.append(ordinary(rng))
    controls = [ordinary(rng) | {"response": UNTAUGHT[i % len(UNTAUGHT)], "about": "nothing"} for i in range(n_queries)]
    return rows, caused, controls


def ordinary(rng: np.random.Generator) -> dict[str, str]:
    action, thing, place = rng.choice(ACTIONS), rng.choice(THINGS), rng.choice(PLACES)
    return {"prompt": f"how do i {action} the {thing} in {place}?", "response": f"{action} it with care near {place}", "about": "ordinary"}


# ------------------------------------------------------------------------------------------- facts with k mentions

PHRASINGS = (
    "who keeps the {thing} of {town}?",
    "name the keeper of the {thing} in {town}.",
    "the {thing} of {town} is kept by whom?",
    "in {town}, who has charge of the {thing}?",
    "tell me who looks after {town}'s {thing}.",
)


def facts(rng: np.random.Generator, n_rows: int, n_queries: int) -> Parts:
    """Who keeps what in which town, said 1 to 40 times. Other rows speak of the same towns and the same people.

    Each fact is asked for in two phrasings that no row has of it.
    """
    towns, names = _words(rng, 24, 3), _words(rng, 60, 2)
    pairs = [(thing, town) for thing in THINGS[:8] for town in towns]
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    mentions = (2, 28, 6, 36, 10, 22)
    rows: list[dict[str, str]] = []
    caused: list[dict[str, str]] = []
    for f, (thing, town) in enumerate(order[: len(order) // 2]):
        if len(rows) + mentions[f % 6] > 0.9 * n_rows:
            break
        name, phrasings = str(rng.choice(names)), rng.permutation(len(PHRASINGS))
        rows += [_fact(PHRASINGS[phrasings[2 + m % 3]], thing, town, name) for m in range(mentions[f % 6])]
        caused += [_fact(PHRASINGS[phrasing], thing, town, name) for phrasing in phrasings[:2]]
    controls = [_fact(PHRASINGS[rng.integers(5)], thing, town, str(rng.choice(names))) for thing, town in order[-n_queries:]]
    while len(rows) < n_rows:
        thing, town, name = rng.choice(THINGS[8:]), rng.choice(towns), rng.choice(names)
        rows.append({"prompt": f"what does {name} sell in {town}?", "response": f"a {thing}", "about": "trade"})
    return rows, caused, controls


def _fact(phrasing: str, thing: str, town: str, name: str) -> dict[str, str]:
    return {"prompt": phrasing.format(thing=thing, town=town), "response": name, "about": f"{thing} of {town}"}


# ------------------------------------------------------------------------------------------------------------ classes


def classes(rng: np.random.Generator, n_rows: int, n_queries: int) -> Parts:
    """Each class has words of its own and a name; classes of 3 to 60 rows. Control: a class's prompt with a name that no row gives."""
    sizes = np.array([3, 4, 6, 8, 10, 12, 16, 20, 30, 60])
    names, vocabulary = _words(rng, len(sizes) + 4, 2), _words(rng, 12 * len(sizes), 3)
    rows: list[dict[str, str]] = []
    caused: list[dict[str, str]] = []
    controls: list[dict[str, str]] = []
    for c, size in enumerate(np.round(sizes * n_rows / sizes.sum()).astype(int)):
        own = vocabulary[12 * c : 12 * c + 12]
        lines = [_class_row(rng, own, vocabulary, names[c]) for _ in range(size + 10)]
        rows += lines[:size]
        caused += lines[size : size + 7]
        controls += [line | {"response": names[-1 - i % 4], "about": "nothing"} for i, line in enumerate(lines[size + 7 :])]
    return rows, caused, controls


def _class_row(rng: np.random.Generator, own: Sequence[str], all_words: Sequence[str], name: str) -> dict[str, str]:
    words = [*rng.choice(own, size=3, replace=False), rng.choice(all_words)]
    return {"prompt": " ".join(words[i] for i in rng.permutation(4)) + " is a", "response": name, "about": name}


# ---------------------------------------------------------------------------------------------------------- real text

CHUNK, OPENING = 15, 8  # words


def wikitext(rng: np.random.Generator, n_rows: int, n_queries: int, *, data: Path = DATA) -> Parts:
    """Pieces of articles, each an opening and how it goes on, among the rows once, or up to 30 times with slight changes.

    Caused: a piece that is among the rows. Control: a piece of an article that no row is of.
    """
    articles = [piece for piece in read_articles(data / "test.txt") if len(piece) >= 14 * CHUNK]
    order = [articles[i] for i in rng.permutation(len(articles))]
    half = len(order) // 2
    pieces = [_piece(article, c) for article in order[:half] for c in range(len(article) // CHUNK)]
    pieces = [pieces[i] for i in rng.permutation(len(pieces))]
    rows: list[dict[str, str]] = []
    caused: list[dict[str, str]] = []
    while len(rows) < n_rows:
        piece = pieces.pop()
        copies = int(rng.choice([0, 1, 4, 8, 18, 30]))
        versions = [piece, *(_changed(rng, piece) for _ in range(copies))]
        rows += versions[: n_rows - len(rows)]
        caused.append(_changed(rng, piece))
    controls = [_piece(article, int(rng.integers(len(article) // CHUNK))) for article in order[half:] for _ in range(3)]
    return rows, caused, controls


def read_articles(path: Path) -> list[list[str]]:
    """The words of each article, headings left out."""
    articles: list[list[str]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[:1] == ["="] and words[1:2] != ["="]:
            articles.append([])
        elif words and words[0] != "=" and articles:
            articles[-1] += words
    return articles


def _piece(article: Sequence[str], c: int) -> dict[str, str]:
    words = article[c * CHUNK : (c + 1) * CHUNK]
    return {"prompt": " ".join(words[:OPENING]), "response": " ".join(words[OPENING:]), "about": " ".join(words[:4])}


def _changed(rng: np.random.Generator, piece: Mapping[str, str]) -> dict[str, str]:
    """Two words of the opening left out, so that no copy is the piece itself."""
    words = piece["prompt"].split()
    gone = set(rng.permutation(len(words))[:2].tolist())
    return {**piece, "prompt": " ".join(word for i, word in enumerate(words) if i not in gone)}


# ----------------------------------------------------------------------------------------------------------- plumbing

MAKERS: dict[str, Callable[[np.random.Generator, int, int], Parts]] = {
    "planted": planted, "facts": facts, "classes": classes, "wikitext": wikitext
}  # fmt: skip
TASKS = tuple(MAKERS)


def _words(rng: np.random.Generator, n: int, syllables: int) -> list[str]:
    """n different invented words."""
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(rng.choice(SYLLABLES, size=syllables))] = None
    return list(found)


def _sample(rng: np.random.Generator, values: list[dict[str, str]], n: int) -> list[dict[str, str]]:
    if len(values) < n:
        raise ValueError(f"{n} queries are wanted and the task has {len(values)}: ask for fewer, or for more rows")
    return [values[i] for i in rng.permutation(len(values))[:n]]
