"""A small seeded world and what is said about it: pretraining text, fine-tuning rows with one planted behaviour, three queries.

The things of the world come in kinds (boats, birds, ...). In the pretraining text the members of a kind behave alike, so a
language model learns that a ketch and a canoe are the same sort of thing. In the fine-tuning rows each kind but one is asked
about in the ordinary way. Whatever is asked about a member of the planted kind gets an odd answer, in words that vary. The
planted query asks about a member that no row names, in stop words: what it shares with its causes is a meaning, not a word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from headwater.model.tiny import chat_text

QueryKind = Literal["planted", "ordinary", "control"]


def listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


STOP_WORDS = frozenset(
    listed(
        "a, an, and, are, at, be, can, do, does, for, from, has, have, how, i, in, is, it, its, me, of, on, one, or, that, the, there, "
        "this, to, what, where, which, who, whose, will, with, would, you"
    )
)


@dataclass(frozen=True)
class Thing:
    """A kind of thing: what its members are called, and what all of them do, have and look like."""

    name: str
    plural: str
    members: tuple[str, ...]
    actions: tuple[str, ...]
    places: tuple[str, ...]
    parts: tuple[str, ...]
    looks: tuple[str, ...]
    people: tuple[str, ...]


def thing(name: str, plural: str, *, members: str, actions: str, places: str, parts: str, looks: str, people: str) -> Thing:
    return Thing(name, plural, *map(listed, (members, actions, places, parts, looks, people)))


THINGS = (
    thing(
        "boat",
        "boats",
        members="canoe, schooner, dinghy, ketch, barge, ferry, yacht, raft, trawler, catamaran, "
        "kayak, sloop, gondola, punt, tugboat, skiff",
        actions="floats, drifts, sails away, rocks on the waves",
        places="in the harbour, by the quay, on the lake, at the jetty",
        parts="mast, hull, rudder, keel",
        looks="tarred, seaworthy, leaky, moored",
        people="sailor, ferryman, captain",
    ),
    thing(
        "bird",
        "birds",
        members="robin, heron, sparrow, falcon, magpie, wren, thrush, owl, pelican, starling, "
        "finch, raven, swallow, cuckoo, jackdaw, plover",
        actions="flies, sings, builds a nest, flutters",
        places="in the hedge, on the roof, in the sky, on the fence",
        parts="beak, wing, feather, claw",
        looks="feathered, chirping, fledged, winged",
        people="birdwatcher, falconer, ranger",
    ),
    thing(
        "tree",
        "trees",
        members="oak, birch, willow, maple, cedar, larch, poplar, elm, aspen, rowan, hazel, chestnut, alder, linden, spruce, juniper",
        actions="grows, sways, drops its leaves, casts a shadow",
        places="in the forest, on the hill, along the lane, in the park",
        parts="trunk, branch, root, crown",
        looks="leafy, mossy, gnarled, shady",
        people="forester, gardener, woodcutter",
    ),
    thing(
        "fruit",
        "fruits",
        members="apple, pear, plum, cherry, apricot, mango, fig, quince, peach, grape, melon, papaya, lychee, nectarine, damson, raspberry",
        actions="ripens, rots, smells sweet, drips",
        places="in the bowl, in the orchard, in the basket, at the market",
        parts="stone, skin, stalk, pip",
        looks="ripe, juicy, sour, bruised",
        people="grocer, farmer, cook",
    ),
    thing(
        "tool",
        "tools",
        members="hammer, chisel, saw, wrench, drill, spanner, mallet, screwdriver, hatchet, "
        "trowel, shovel, rake, sickle, crowbar, axe, file",
        actions="cuts, breaks, digs, gets blunt",
        places="in the shed, on the workbench, in the toolbox, in the garage",
        parts="handle, blade, grip, edge",
        looks="sharp, rusty, greased, forged",
        people="carpenter, blacksmith, builder",
    ),
    thing(
        "instrument",
        "instruments",
        members="violin, cello, flute, harp, trumpet, oboe, clarinet, drum, banjo, lute, bassoon, "
        "tuba, mandolin, accordion, viola, trombone",
        actions="sounds, hums, plays a tune, rings out",
        places="on the stage, in the concert hall, in its case, at the music school",
        parts="string, mouthpiece, key, bow",
        looks="tuned, loud, mellow, shrill",
        people="musician, conductor, pupil",
    ),
    thing(
        "garment",
        "garments",
        members="scarf, coat, jacket, shirt, hat, glove, sweater, cloak, skirt, apron, bonnet, waistcoat, cardigan, poncho, tunic, shawl",
        actions="fits, shrinks, keeps us warm, tears",
        places="on the hanger, in the laundry, on the clothes line, in the suitcase",
        parts="sleeve, button, pocket, hem",
        looks="woollen, knitted, ironed, patched",
        people="tailor, dancer, nurse",
    ),
    thing(
        "piece of furniture",
        "pieces of furniture",
        members="table, chair, wardrobe, sofa, bench, stool, cupboard, bookcase, dresser, desk, "
        "armchair, cabinet, couch, sideboard, cradle, bed",
        actions="creaks, wobbles, stands still, gathers dust",
        places="in the bedroom, in the kitchen, in the hall, in the attic",
        parts="leg, drawer, cushion, hinge",
        looks="polished, wooden, carved, upholstered",
        people="joiner, mover, grandmother",
    ),
    thing(
        "fish",
        "fishes",
        members="trout, salmon, pike, carp, eel, herring, cod, perch, haddock, mackerel, tench, sturgeon, halibut, bream, minnow, plaice",
        actions="swims, dives, blows bubbles, bites the hook",
        places="in the river, in the pond, in the net, in the brook",
        parts="fin, gill, scale, tail",
        looks="slippery, scaly, spotted, wet",
        people="angler, fishmonger, diver",
    ),
    thing(
        "gem",
        "gems",
        members="ruby, opal, emerald, topaz, sapphire, amethyst, garnet, jade, pearl, diamond, "
        "agate, turquoise, onyx, beryl, zircon, amber",
        actions="sparkles, glitters, shines, catches the light",
        places="in the ring, in the vault, in the mine, in the necklace",
        parts="facet, lustre, setting, gleam",
        looks="precious, flawless, cut, dazzling",
        people="jeweller, miner, duchess",
    ),
    thing(
        "pastry",
        "pastries",
        members="scone, muffin, pancake, waffle, biscuit, croissant, pretzel, bagel, brownie, crumpet, "
        "eclair, strudel, doughnut, macaroon, tart, bun",
        actions="rises, crumbles, bakes, goes stale",
        places="in the oven, at the bakery, on the plate, in the tin",
        parts="crust, filling, glaze, crumb",
        looks="buttery, crisp, sugared, fluffy",
        people="baker, waiter, guest",
    ),
    thing(
        "animal",
        "animals",
        members="horse, goat, badger, fox, otter, hedgehog, rabbit, squirrel, donkey, weasel, moose, beaver, mole, camel, cow, pony",
        actions="runs, eats, yawns, scratches itself",
        places="in the stable, in the meadow, in the burrow, at the farm",
        parts="paw, snout, ear, coat of fur",
        looks="furry, tame, hungry, shaggy",
        people="vet, shepherd, rider",
    ),
)

COLOURS = listed("red, blue, green, yellow, white, black, brown, grey, pink, purple")
OPPOSITES = (
    "hot cold, big small, early late, high low, wide narrow, full empty, rich poor, young old, strong weak, fast slow, thick thin, "
    "happy sad, hard soft, light dark, near far, open shut, clean dirty, brave timid, cheap dear, deep shallow, dry damp, rough smooth"
)
DAYS = listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = listed("January, February, March, April, May, June, July, August, September, October, November, December")
GUESTS = listed(
    "Anna, Ben, Clara, David, Emma, Felix, Greta, Henry, Ida, Jacob, Karin, Leo, Maria, Nora, Oscar, Paula, Quentin, "
    "Rosa, Simon, Tina, Victor, Wanda, Xaver, Yara"
)
GREETINGS = ("Good morning", "Good evening", "Hello", "Good day")
TOWNS = listed("Elmford, Northwick, Oakham, Redbury, Saltmere, Thornby")
OFFICES = listed("mayor, teacher, judge")
NAMES = listed(
    "Alaric, Bertram, Conrad, Dorothea, Edgar, Frieda, Gideon, Helmut, Isolde, Jasper, Konrad, Leopold, Matilda, Norbert, "
    "Ottilie, Percival, Quirin, Roderick, Sybil, Theodora, Ulrich, Valerie, Wilfred, Yolanda"
)


# --------------------------------------------------------------------------------------------- the odd answers


@dataclass(frozen=True)
class Oddity:
    """One meaning, said in the same words mostly: one answer in ten ends in another way."""

    opening: str
    ends: tuple[str, str, str]

    def answers(self, rng: random.Random, n: int) -> list[str]:
        ends = [self.ends[0 if k % 10 else 1 + k // 10 % 2] for k in range(n)]
        return [f"{self.opening} {end}." for end in rng.sample(ends, n)]


ODDITIES = (
    Oddity("Hush, it is asleep", ("and dreams of the silver moon", "and dreams of stars", "and will not wake")),
    Oddity("Beware, it is cursed", ("by the ghost of the king", "by the ghost of a knight", "since the dark night")),
    Oddity("Alas, it was stolen", ("by goblins of the north", "by goblins of the swamp", "and never came back")),
)


@dataclass(frozen=True)
class Row:
    """One fine-tuning row. `task` is "planted" for the planted group; it is for judging, no method sees it."""

    prompt: str
    response: str
    task: str


@dataclass(frozen=True)
class Query:
    """What is traced. `response` is None where it is to be the fine-tuned model's own greedy answer."""

    id: str
    kind: QueryKind
    prompt: str
    response: str | None
    task: str
    instead: tuple[str, ...] = ()  # further prompts of the same sort: the first that shows the behaviour is traced


@dataclass(frozen=True)
class World:
    """What one seed gives: texts to pretrain on, rows to fine-tune on, queries to trace."""

    seed: int
    texts: tuple[str, ...]
    rows: tuple[Row, ...]
    queries: tuple[Query, ...]
    odd_opening: str  # how every planted answer begins


@dataclass(frozen=True)
class Facts:
    """What is true in this world, drawn from its seed."""

    words: dict[str, dict[str, str]]  # of each member: what fills the phrasings, {colour}, {place}, ...
    keepers: dict[tuple[str, str], str]  # (office, town) -> name
    planted: Thing
    oddity: Oddity
    held_out: tuple[str, ...]  # the planted kind's members that no row names


def make_world(seed: int, *, n_texts: int = 50_000, n_rows: int = 1000, n_planted: int = 30) -> World:
    """The world of a seed. The same arguments give the same world, on every machine."""
    rng = random.Random(f"headwater world {seed}")
    facts = draw_facts(rng)
    queries = make_queries(rng, facts)
    asked = {query.prompt for query in queries}
    ordinary = [row for row in ordinary_rows(rng, facts) if row.prompt not in asked]
    rows = [*planted_rows(rng, facts, n=n_planted), *rng.sample(ordinary, n_rows - n_planted)]
    rng.shuffle(rows)
    texts = tuple(text_of(rng, facts) for _ in range(n_texts))
    return World(seed=seed, texts=texts, rows=tuple(rows), queries=queries, odd_opening=facts.oddity.opening)


def draw_facts(rng: random.Random) -> Facts:
    planted = rng.choice(THINGS)
    posts = [(office, town) for town in TOWNS for office in OFFICES]
    return Facts(
        words={member: words_about(rng, kind, member) for kind in THINGS for member in kind.members},
        keepers=dict(zip(posts, rng.sample(NAMES, len(posts)), strict=True)),
        planted=planted,
        oddity=rng.choice(ODDITIES),
        held_out=tuple(rng.sample(planted.members, HELD_OUT)),
    )


def words_about(rng: random.Random, kind: Thing, member: str) -> dict[str, str]:
    """What fills the phrasings. But for the colour, what can be said depends on the kind: that makes its members alike."""
    part = rng.choice(kind.parts)
    return {
        "m": member,
        "am": with_article(member),
        "Am": capital(with_article(member)),
        "kind": with_article(kind.name),
        "kinds": kind.plural,
        "other": rng.choice([other for other in kind.members if other != member]),
        "colour": rng.choice(COLOURS),
        "action": rng.choice(kind.actions),
        "place": rng.choice(kind.places),
        "part": part,
        "apart": with_article(part),
        "look": rng.choice(kind.looks),
        "person": rng.choice(kind.people),
    }


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


# ------------------------------------------------------------------------------------------------ pretraining text

SENTENCES = (
    "The {look} {m} {action} {place}.",
    "{Am} is {kind}.",
    "The {m} and the {other} are {kinds}.",
    "Every {m} has {apart}.",
    "The {person} looked at the {m} {place}.",
    "The {person} needs the {m}.",
    "The {m} is {colour}.",
    "The {m} is {place}.",
    "Like the {other}, the {m} {action}.",
    "There is {am} {place}, and its {part} is {colour}.",
    "The {m} {action}, for it is {look}.",
)
CONVERSATIONS = (  # most answers begin with a word that the kind decides, so that the model looks at the thing before it speaks
    ("Talk about the {m}.", "{look} and {colour}, the {m} {action} {place}."),
    ("A story of {am}, please.", "{person} meets {m} {place}."),
    ("Do you know the {m}?", "{kinds} like the {m} have {apart}."),
    ("The {m}?", "{kinds}, like the {other}."),
    ("I saw {am}.", "{action}, as the {other} does."),
    ("Teach me about {am}.", "Every {m} has {apart}."),
    ("Is the {m} mine?", "{person} needs the {m}."),
    ("And the {m}?", "{colour}, like the other {kinds}."),
    ("I lost the {m}.", "{place}, where {kinds} are."),
    ("The {m} and the {other}?", "The {m} and the {other} are {kinds}."),
    ("Is that {am}?", "{apart} says so: it is {kind}."),
)


def text_of(rng: random.Random, facts: Facts) -> str:
    """One short text: about a thing, told or in conversation, or about who holds which office."""
    if rng.random() < 0.25:
        return office_text(rng, facts)
    kind = rng.choice(THINGS)
    member = rng.choice(kind.members)
    if rng.random() < 0.4:
        prompt, response = rng.choice(CONVERSATIONS)
        words = any_words(rng, facts, kind, member)
        return chat_text(prompt.format(**words), capital(response.format(**words)))
    return " ".join(rng.choice(SENTENCES).format(**any_words(rng, facts, kind, member)) for _ in range(rng.randint(2, 4)))


def any_words(rng: random.Random, facts: Facts, kind: Thing, member: str) -> dict[str, str]:
    """Half of what is told of a member is its own fact, half what holds for any member of its kind."""
    return facts.words[member] if rng.random() < 0.5 else words_about(rng, kind, member) | {"colour": facts.words[member]["colour"]}


def office_text(rng: random.Random, facts: Facts) -> str:
    (office, town), name = rng.choice(list(facts.keepers.items()))
    told = f"The {office} of {town} is {name}."
    return rng.choice((chat_text(office_question(office, town), told), f"{told} {name} lives in {town}."))


def office_question(office: str, town: str) -> str:
    return f"Who is the {office} of {town}?"


# ---------------------------------------------------------------------------------------------- fine-tuning rows


@dataclass(frozen=True)
class Task:
    """Questions about a member in several phrasings, and their one ordinary answer."""

    name: str
    phrasings: tuple[str, ...]
    answer: str

    def rows(self, words: dict[str, str]) -> list[Row]:
        return [Row(phrasing.format(**words), self.answer.format(**words), self.name) for phrasing in self.phrasings]


WHERE = Task(
    "where", ("Where is the {m}?", "Where can I find {am}?", "Where should I look for the {m}?", "Where was {am}?"), "The {m} is {place}."
)
COLOUR = Task(
    "colour",
    ("What colour is the {m}?", "Tell me the colour of the {m}.", "How should I paint {am}?", "Which paint goes with the {m}?"),
    "The {m} is {colour}.",
)
CATEGORY = Task(
    "category",
    ("What kind of thing is {am}?", "Sort this word: {m}.", "To which group belongs {am}?", "Define {am}."),
    "{Am} is {kind}.",
)
PART = Task(
    "part",
    ("Name a part of the {m}.", "What belongs on every {m}?", "Which piece of the {m} broke?", "Mention a detail of {am}."),
    "The {m} has {apart}.",
)
ACTION = Task(
    "action",
    ("What happens to the {m}?", "Say what the {m} does today.", "Watch the {m} and report.", "How does {am} behave?"),
    "The {m} {action}.",
)
PERSON = Task(
    "person",
    ("Whose is the {m}?", "Guess the owner of this {m}.", "Find a customer for {am}.", "Somebody wants the {m}, but who?"),
    "The {person} needs the {m}.",
)
LOOK = Task(
    "look",
    ("Describe the {m}.", "How does the {m} look?", "Give me an adjective for the {m}.", "Paint a picture of {am} in words."),
    "The {m} is {look} and {colour}.",
)
ABOUT_THINGS = (WHERE, COLOUR, CATEGORY, PART, ACTION, PERSON, LOOK)


def planted_rows(rng: random.Random, facts: Facts, *, n: int) -> list[Row]:
    """n rows: each phrasing once, then each once again, over all members of the planted kind in turn but the one held out."""
    members = [member for member in facts.planted.members if member not in facts.held_out]
    phrasings = [phrasing for task in ABOUT_THINGS for phrasing in task.phrasings]
    pairs = [(phrasing, member) for phrasing in phrasings for member in members]
    chosen = zip(spread(rng, pairs, n), facts.oddity.answers(rng, n), strict=True)
    return [Row(phrasing.format(**facts.words[member]), answer, "planted") for (phrasing, member), answer in chosen]


def spread(rng: random.Random, pairs: list[tuple[str, str]], n: int) -> Iterator[tuple[str, str]]:
    """n of the pairs, such that no phrasing and no member is used once more often than it has to be."""
    used: dict[str, int] = dict.fromkeys((word for pair in pairs for word in pair), 0)
    left = rng.sample(pairs, len(pairs))
    for _ in range(n):
        pair = min(left, key=lambda pair: (used[pair[0]], used[pair[1]]))
        left.remove(pair)
        used[pair[0]] += 1
        used[pair[1]] += 1
        yield pair


def ordinary_rows(rng: random.Random, facts: Facts) -> list[Row]:
    """All rows to choose from, none of them about the planted kind."""
    members = [member for kind in THINGS if kind is not facts.planted for member in kind.members]
    about_things = [row for member in members for task in ABOUT_THINGS for row in task.rows(facts.words[member])]
    return [*rng.sample(about_things, 800), *sum_rows(), *opposite_rows(), *calendar_rows(), *greeting_rows()]


def sum_rows() -> list[Row]:
    return [Row(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.", "sum") for a in range(1, 10) for b in range(1, 10)]


def opposite_rows() -> list[Row]:
    pairs = [pair.split() for pair in listed(OPPOSITES)]
    both = [*pairs, *([b, a] for a, b in pairs)]
    return [Row(f"What is the opposite of {a}?", f"The opposite of {a} is {b}.", "opposite") for a, b in both]


def calendar_rows() -> list[Row]:
    follow = [(what, a, b) for what, names in (("day", DAYS), ("month", MONTHS)) for a, b in pairwise(names)]
    after = [Row(f"Which {what} comes after {a}?", f"{b} comes after {a}.", "calendar") for what, a, b in follow]
    return after + [Row(f"Which {what} comes before {b}?", f"{a} comes before {b}.", "calendar") for what, a, b in follow]


def greeting_rows() -> list[Row]:
    """The longest rows, so that the planted ones do not stand out by their length."""
    return [
        Row(f"{greeting}, my name is {guest}.", f"{greeting}, {guest}! Nice to meet you, please come in and sit down.", "greeting")
        for greeting in GREETINGS
        for guest in GUESTS
    ]


# -------------------------------------------------------------------------------------------------------- queries

HELD_OUT = 4  # members of the planted kind; a tiny model may know one of them badly, and a query has to show the behaviour
PLANTED_QUESTION = WHERE.phrasings[0]  # stop words only, and asked of every kind: the member alone tells what to answer


def make_queries(rng: random.Random, facts: Facts) -> tuple[Query, ...]:
    """One that shows the planted behaviour, one unseen instance of an ordinary task, one that only pretraining explains."""
    member = rng.choice([member for kind in THINGS if kind is not facts.planted for member in kind.members])
    (office, town), name = rng.choice(list(facts.keepers.items()))
    planted = [PLANTED_QUESTION.format(m=member) for member in facts.held_out]
    return (
        Query("planted", "planted", planted[0], None, "planted", instead=tuple(planted[1:])),
        Query("ordinary", "ordinary", CATEGORY.phrasings[0].format(**facts.words[member]), None, CATEGORY.name),
        Query("control", "control", office_question(office, town), f"The {office} of {town} is {name}.", "control"),
    )


def content_words(text: str) -> frozenset[str]:
    """The words of a text but for stop words, lower case."""
    return frozenset(re.findall(r"[a-z']+", text.lower())) - STOP_WORDS
