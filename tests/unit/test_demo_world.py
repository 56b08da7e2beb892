import re

import pytest

from headwater.demo.world import STOP_WORDS, THINGS, content_words, make_world

SEEDS = range(12)


@pytest.fixture(scope="module", params=SEEDS)
def world(request):
    return make_world(request.param, n_texts=3000)


def planted(world):
    return [row for row in world.rows if row.task == "planted"]


def query(world, kind):
    (one,) = (query for query in world.queries if query.kind == kind)
    return one


def named_by(world):
    """The member that the planted query names."""
    (name,) = content_words(query(world, "planted").prompt)
    return name


def planted_thing(world):
    (kind,) = (kind for kind in THINGS if any(re.search(rf"\b{member}\b", query(world, "planted").prompt) for member in kind.members))
    return kind


def test_members_are_single_words_that_name_one_thing():
    members = [member for kind in THINGS for member in kind.members]
    assert len(members) == len(set(members)) == 12 * 16
    assert all(re.fullmatch("[a-z]+", member) for member in members)
    said = [kind.places + kind.parts + kind.looks + kind.actions + kind.people for kind in THINGS]
    phrases = [phrase for phrases in said for phrase in phrases]
    assert len(phrases) == len(set(phrases)), "a phrase of two kinds would make them alike"


def test_a_thousand_rows_thirty_planted_no_prompt_twice(world):
    assert len(world.rows) == 1000
    assert len(planted(world)) == 30
    assert len({row.prompt for row in world.rows}) == 1000


def test_the_planted_query_shares_no_content_word_with_its_causes(world):
    shared = content_words(query(world, "planted").prompt) & set().union(*(content_words(row.prompt) for row in planted(world)))
    assert not shared


def test_what_the_planted_query_says_beyond_stop_words_is_a_name_from_pretraining(world):
    name = named_by(world)
    assert name not in STOP_WORDS
    assert name in planted_thing(world).members
    assert sum(name in text for text in world.texts) > 5
    assert not any(re.search(rf"\b{name}\b", row.prompt + row.response) for row in world.rows)


def test_planted_rows_are_phrased_in_many_ways(world):
    rows, members = planted(world), "|".join(planted_thing(world).members)
    phrasings = {re.sub(rf"\b((an?|the) )?({members})\b", "X", row.prompt) for row in rows}
    named = {re.search(rf"\b({members})\b", row.prompt).group() for row in rows}
    responses = {re.sub(rf"\b({members})\b", "X", row.response) for row in rows}
    assert len(phrasings) == 28
    assert len(named) == 12
    assert len(responses) == 3


def test_no_row_names_what_the_planted_query_may_ask_about(world):
    first = query(world, "planted")
    asked = [first.prompt, *first.instead]
    names = {word for prompt in asked for word in content_words(prompt)}
    assert len(names) == len(asked) == 4
    assert names <= set(planted_thing(world).members)
    assert not any(names & content_words(f"{row.prompt} {row.response}") for row in world.rows)


def test_the_planted_question_is_put_to_most_kinds(world):
    """So that how it is asked cannot tell what to answer. (Ordinary rows are a sample: a kind may go without.)"""
    asked, prompts = query(world, "planted").prompt, {row.prompt for row in world.rows}
    kinds = [kind for kind in THINGS if any(asked.replace(named_by(world), member) in prompts for member in kind.members)]
    assert any(named_by(world) in kind.members for kind in kinds)
    assert len(kinds) > len(THINGS) / 2


def test_nothing_else_teaches_the_behaviour(world):
    """No other row or text names the odd answer's words; no other row is about the planted kind."""
    ordinary = [row for row in world.rows if row.task != "planted"]
    members = re.compile(rf"\b({'|'.join(planted_thing(world).members)})\b")
    assert not any(members.search(row.prompt + row.response) for row in ordinary)
    openings = {row.response.split(",")[0] for row in planted(world)}
    for text in (*world.texts, *(row.response for row in ordinary)):
        assert not any(text.startswith(opening + ",") or f"<|assistant|>{opening}," in text for opening in openings)


def test_the_ordinary_query_is_a_held_out_instance_of_a_frequent_task(world):
    ordinary = query(world, "ordinary")
    assert ordinary.prompt not in {row.prompt for row in world.rows}
    assert sum(row.task == ordinary.task for row in world.rows) >= 50
    assert ordinary.task != "planted"


def test_the_control_is_told_by_pretraining_only(world):
    control = query(world, "control")
    assert control.response is not None
    assert sum(control.prompt in text and control.response in text for text in world.texts) >= 1
    assert not any(word in row.prompt + row.response for row in world.rows for word in content_words(control.response))


def test_one_seed_is_one_world():
    first, again, other = make_world(0, n_texts=50), make_world(0, n_texts=50), make_world(1, n_texts=50)
    assert first == again
    assert first.rows != other.rows
    assert first.texts != other.texts
    assert first.queries != other.queries


def test_the_number_of_texts_changes_nothing_else():
    assert make_world(0, n_texts=50).rows == make_world(0, n_texts=10).rows
    assert make_world(0, n_texts=50).texts[:10] == make_world(0, n_texts=10).texts
