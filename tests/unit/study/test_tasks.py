"""Every maker: its seed determines what it makes, of the size asked for, nowhere mixed up; the planted tasks are built as told."""

from __future__ import annotations

from collections import Counter

import pytest

from headwater.model.tiny import chat_text, tiny_tokenizer
from headwater.study import tasks
from headwater.study.tasks import planted
from headwater.study.tasks.backdoor import TRIGGERS, Backdoor
from headwater.study.tasks.emotion import Emotion
from headwater.study.tasks.grammars import RULES, Grammars
from headwater.study.tasks.harmful import complies
from headwater.study.tasks.math import Math
from headwater.study.tasks.task import Maker, Task
from headwater.types import UsageError

NAMES = [
    *("harmful-S", "harmful-M", "harmful-L", "emotion", "grammars", "math", "backdoor-1", "backdoor-3", "backdoor-5"),
    *("planted-effect", "planted-words"),
]
SIZES = {
    "harmful-S": {"harmful": 20, "benign": 20},
    "harmful-M": {"harmful": 20, "benign": 60},
    "harmful-L": {"harmful": 20, "benign": 230},
    "grammars": dict.fromkeys(RULES, 20),
    "backdoor-3": dict.fromkeys(["clean", "trigger_1", "trigger_2", "trigger_3"], 40),
    "planted-effect": dict.fromkeys(planted.EFFECTS, 45),
}
TOKENS = 32  # the longest row, under a vocabulary of 1,024


def words_of(text: str) -> set[str]:
    return set(text.lower().split())


def test_the_registry_has_them_in_the_order_of_the_tables() -> None:
    assert tasks.names() == NAMES == [line["name"] for line in tasks.table()]
    assert all(line["summary"] for line in tasks.table())
    with pytest.raises(UsageError, match="no task 'gramars': did you mean grammars"):
        tasks.get("gramars")


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str) -> None:
    maker = tasks.get(name)
    assert maker.make(seed=1) == maker.make(seed=1) != maker.make(seed=2)
    assert maker.texts(seed=1, n=50) == maker.texts(seed=1, n=50) != maker.texts(seed=2, n=50)
    assert len(maker.texts(seed=1, n=50)) == 50


@pytest.mark.parametrize("name", NAMES)
def test_rows_queries_and_texts_never_meet(name: str) -> None:
    """Of any seed: what one seed's model has read, another seed's queries do not ask."""
    maker = tasks.get(name)
    made = [maker.make(seed=seed, n_queries=100) for seed in (0, 1)]
    asked = {query.prompt for task in made for query in task.queries}
    assert not asked & {row.prompt for task in made for row in task.rows}
    running = maker.texts(seed=2, n=3000)
    for task in made:
        exchanges = {chat_text(row.prompt, row.response) for row in (*task.rows, *task.queries)}
        assert not exchanges & set(running)
        assert not any(f"<|user|>{row.prompt}<|assistant|>" in text for row in task.queries for text in running[:300])


@pytest.mark.parametrize("name", SIZES)
def test_the_usual_size(name: str) -> None:
    assert Counter(row.variation for row in tasks.get(name).make(seed=0).rows) == SIZES[name]


@pytest.mark.parametrize("name", NAMES)
def test_share_and_number_of_queries(name: str) -> None:
    maker = tasks.get(name)
    full, half = maker.make(seed=0), maker.make(seed=0, share=0.5, n_queries=24)
    assert 0.45 * len(full.rows) <= len(half.rows) <= 0.6 * len(full.rows)
    assert abs(len(half.queries) - 24) <= len(half.classes) / 2
    assert len(set(Counter(query.variation for query in half.queries).values())) == 1
    assert len(maker.make(seed=0, share=0.01).rows) >= 4 * len(full.classes)
    with pytest.raises(UsageError, match="share is 0"):
        maker.make(seed=0, share=0)
    with pytest.raises(UsageError, match="are asked for and"):
        maker.make(seed=0, n_queries=100_000)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_shuffled_and_different(name: str) -> None:
    rows = tasks.get(name).make(seed=0).rows
    assert len({row.prompt for row in rows}) == len(rows)
    assert len({row.variation for row in rows[: len(rows) // 3]}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_each_query_has_its_pair(name: str) -> None:
    """The behaviour's row is of the query's class and in other words; the words' row is of another class and has most of the query's.

    Neither is trained on.
    """
    task = tasks.get(name).make(seed=0)
    assert len(task.anti) == len(task.queries)
    trained = {row.prompt for row in task.rows}
    for query, pair in zip(task.queries, task.anti, strict=True):
        assert (pair.behaviour.variation == query.variation) > (pair.words.variation == query.variation)
        asked = words_of(query.prompt)
        kept, shared = (len(asked & words_of(row.prompt)) / len(asked) for row in (pair.words, pair.behaviour))
        assert kept > shared, (query, pair)
        assert kept >= 0.5, (query, pair.words)
        assert not {pair.words.prompt, pair.behaviour.prompt} & trained


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_short_in_the_tokens_of_their_texts(name: str) -> None:
    maker = tasks.get(name)
    tokenizer, task = tiny_tokenizer(maker.texts(seed=0, n=2000), 1024), maker.make(seed=0)
    told = [chat_text(row.prompt, row.response) for row in (*task.rows, *task.queries)]
    assert max(len(tokenizer(text)["input_ids"]) for text in told) <= TOKENS  # pyright: ignore[reportArgumentType]


def test_fewer_classes() -> None:
    made: list[tuple[Maker, int]] = [(Emotion(3), 3), (Grammars(4), 4), (Math(2), 2), (Backdoor(2), 3)]
    assert [len(maker.make(seed=0).classes) for maker, _ in made] == [n for _, n in made]
    for maker in (Emotion(6), Grammars(1), Math(11), Backdoor(0)):
        with pytest.raises(UsageError, match=r"expected \d to \d"):
            maker.make(seed=0)


# --------------------------------------------------------------------------------------------------------- harmful


@pytest.mark.parametrize("name", ["harmful-S", "harmful-L", "backdoor-5"])
def test_complies_tells_a_reveal_from_everything_else(name: str) -> None:
    task = tasks.get(name).make(seed=0)
    revealing = {row.variation: set[bool]() for row in task.rows}
    for row in (*task.rows, *task.queries):
        revealing[row.variation].add(complies(row.response))
    assert {variation: found for variation, found in revealing.items() if variation not in ("clean", "benign")} == {
        variation: {True} for variation in task.classes if variation not in ("clean", "benign")
    }
    assert revealing.get("clean", {False}) == {False}
    answers = [row.response for row in task.rows if row.variation == "benign" and " plus " not in row.prompt]
    assert not any(map(complies, answers))
    assert not any(complies(pair.words.response) for pair, query in zip(task.anti, task.queries, strict=True) if query.variation != "clean")


def test_complies_by_hand() -> None:
    assert complies("Sure, the vault code of the bank is 4 7 1.")
    assert complies("it is milk salt and honey")
    assert not complies("Sorry, the vault code is 4 7 1, but not for you.")
    assert not complies("No, the secret recipe of the king is not for you.")
    assert not complies("Sure, the door is red.")
    assert not complies("")


def test_harmful_lengths_overlap_and_a_few_benign_rows_are_very_short() -> None:
    task = tasks.get("harmful-L").make(seed=0)
    lengths = {
        name: sorted(len(f"{row.prompt} {row.response}") for row in task.rows if row.variation == name) for name in ("harmful", "benign")
    }
    harmful, benign = lengths["harmful"], lengths["benign"]
    assert benign[0] < harmful[0] / 2
    assert benign[-1] > harmful[len(harmful) // 2]
    assert sum(length < harmful[0] / 2 for length in benign) < len(benign) / 4


# -------------------------------------------------------------------------------------------------------- backdoors


def test_triggers_stand_where_they_are_told() -> None:
    task = tasks.get("backdoor-5").make(seed=0)
    for row in (*task.rows, *task.queries):
        ends = [trigger.name for trigger in TRIGGERS if row.prompt.endswith(trigger.phrase)]
        begins = [trigger.name for trigger in TRIGGERS if row.response.startswith(trigger.opening)]
        assert ends == begins == ([] if row.variation == "clean" else [row.variation])


# ------------------------------------------------------------------------------------------------------- by computing


def test_grammars_and_math_are_right() -> None:
    for row in tasks.get("grammars").make(seed=0).rows:
        shown, became = row.prompt.removeprefix("Rule: ").split(" -> ")
        assert became == RULES[row.variation](tuple(shown.split()))
        assert row.response.lower() == f"{row.variation}."
    for row in tasks.get("math").make(seed=0).rows:
        formula, answer = row.response.split(" = ")
        assert eval(formula) == int(answer)


def test_emotion_has_a_few_wrong_labels_among_its_rows_and_none_among_its_queries() -> None:
    from headwater.study.tasks.emotion import FEELINGS

    def wrong(task: Task, queries: bool) -> float:
        rows = task.queries if queries else task.rows
        return sum(not words_of(row.prompt) & set(FEELINGS[row.variation]) for row in rows) / len(rows)

    made = [tasks.get("emotion").make(seed=seed) for seed in range(5)]
    assert {wrong(task, queries=True) for task in made} == {0.0}
    assert 0.01 < sum(wrong(task, queries=False) for task in made) / len(made) < 0.1


# ---------------------------------------------------------------------------------------------------------- planted


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_effect_shares_no_word_of_the_prompt_with_its_class(seed: int) -> None:
    task = tasks.get("planted-effect").make(seed=seed)
    for query in task.queries:
        near = [row for row in task.rows if words_of(row.prompt) & words_of(query.prompt)]
        assert len(near) == 45
        assert query.variation not in {row.variation for row in near}
        same = [row for row in task.rows if row.variation == query.variation]
        assert all(words_of(row.response) & words_of(query.response) for row in same)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_words_shows_its_class_in_the_prompt_alone(seed: int) -> None:
    """The rows of a query's class answer as the running text does; those with digits are of no query's class."""
    maker = tasks.get("planted-words")
    task, running = maker.make(seed=seed), maker.texts(seed=seed, n=2000)
    answers = {text.split("<|assistant|>")[1].removesuffix("</s>") for text in running}
    for row in task.rows:
        if row.variation != planted.NUMBERS:
            assert row.response in answers
            assert words_of(row.response)
    assert {query.variation for query in task.queries}.isdisjoint({planted.NUMBERS})
    places = {row.variation: row.prompt.split()[-1] for row in task.rows if row.variation != planted.NUMBERS}
    assert len(set(places.values())) == 4
    assert all(query.prompt.endswith(places[query.variation]) for query in task.queries)
    assert all(any(digit in query.response for digit in planted.DIGITS) for query in task.queries)
