import json

import pytest
from tests.unit.corpus_tokenizers import CHAT_TEMPLATE, bert_tokenizer, bpe_tokenizer

from headwater.corpus import load_corpus, query, read_queries
from headwater.types import DataError, UsageError

PLAIN, CHAT = bpe_tokenizer(), bpe_tokenizer(chat_template=CHAT_TEMPLATE)
PAIR = {"prompt": "what is the capital of France", "response": "Paris is the capital of France"}
TALK = {
    "messages": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello there"},
        {"role": "user", "content": PAIR["prompt"]},
        {"role": "assistant", "content": PAIR["response"]},
    ]
}


def spoken(tokenizer, example):
    return tokenizer.decode(example.tokens[example.loss_mask])


@pytest.mark.parametrize("options", [{}, {"loss_on": "all"}, {"max_length": 60}], ids=str)
@pytest.mark.parametrize(
    ("tokenizer", "row"),
    [(PLAIN, PAIR), (CHAT, PAIR), (CHAT, TALK), (PLAIN, {"text": PAIR["response"]})],
    ids=["plain pair", "chat pair", "chat", "text"],
)
def test_a_query_is_encoded_as_the_same_training_row(tokenizer, options, row):
    mine, theirs = query(tokenizer, **row, **options), load_corpus([row], tokenizer, **options).examples[0]
    assert mine.tokens.tolist() == theirs.tokens.tolist()
    assert mine.loss_mask.tolist() == theirs.loss_mask.tolist()
    assert (mine.id, mine.group, mine.prompt, mine.response) == (theirs.id, theirs.group, theirs.prompt, theirs.response)


@pytest.mark.parametrize("tokenizer", [PLAIN, CHAT], ids=["plain", "chat"])
def test_asking_for_a_span_elsewhere_changes_no_token_of_a_query(tokenizer):
    both = read_queries([PAIR, {**PAIR, "span": "Paris"}], tokenizer)
    alone = query(tokenizer, **PAIR)
    assert both[0].id == alone.id
    assert both[1].tokens.tolist() == alone.tokens.tolist()


@pytest.mark.parametrize("tokenizer", [PLAIN, CHAT], ids=["plain", "chat"])
@pytest.mark.parametrize(
    ("span", "expected"), [("Paris", "Paris"), ([0, 5], "Paris"), ([24, 30], "France"), ("the capital", "the capital")]
)
def test_a_span_leaves_only_its_tokens_as_targets(tokenizer, span, expected):
    example = query(tokenizer, **PAIR, span=span)
    assert spoken(tokenizer, example).strip() == expected
    assert example.meta["span"] == span


def test_a_span_of_a_conversation_is_of_its_last_answer():
    assert spoken(CHAT, query(CHAT, **TALK, span="Paris")) == "Paris"


def test_a_span_counts_the_characters_of_the_response_even_where_the_template_trims_it():
    trimming = CHAT_TEMPLATE.replace("m['content']", "m['content'] | trim")
    example = query(PLAIN, prompt="what", response="  Paris is", span=[2, 7], chat_template=trimming)
    assert spoken(PLAIN, example) == "Paris"


@pytest.mark.parametrize("span", ["London", "", "e", [3, 3], [-1, 2], [0, 99], [1], ["a", "b"], 4])
def test_a_span_that_is_not_in_the_response_is_refused(span):
    with pytest.raises(UsageError, match="span"):
        query(PLAIN, **PAIR, span=span)


def test_a_span_makes_no_target_of_the_first_token():
    example = query(bpe_tokenizer(bos=False), prompt="", response="Paris is", span=[0, 8])
    assert not example.loss_mask[0]
    assert example.loss_mask[1:-1].all()


def test_a_span_that_truncation_cut_off_is_refused():
    with pytest.raises(UsageError, match="max-length"):
        query(PLAIN, **PAIR, span="France", max_length=query(PLAIN, **PAIR).n_tokens - 5)


@pytest.mark.parametrize("tokenizer", [PLAIN, CHAT], ids=["plain", "chat"])
def test_an_alternative_is_the_same_query_with_another_answer(tokenizer):
    example = query(tokenizer, **PAIR, alternative="London")
    assert example.alternative is not None
    other = query(tokenizer, prompt=PAIR["prompt"], response="London")
    assert example.alternative.id == other.id
    assert example.alternative.tokens.tolist() == other.tokens.tolist()
    assert example.id == query(tokenizer, **PAIR).id


def test_an_alternative_of_a_conversation_replaces_its_last_answer():
    example = query(CHAT, **TALK, alternative="London")
    assert example.alternative is not None
    assert example.alternative.response == "London"
    assert example.alternative.prompt == example.prompt


def test_mixed_queries_keep_their_own_alternatives(tmp_path):
    rows = [PAIR, {**PAIR, "alternative": "London", "kind": "planted"}, TALK, {**PAIR, "alternative": "Rome", "id": "mine"}]
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = read_queries(path, CHAT)
    assert [q.alternative.response if q.alternative else None for q in queries] == [None, "London", None, "Rome"]
    assert [q.meta.get("kind") for q in queries] == [None, "planted", None, None]
    assert [q.id for q in queries] == [queries[0].id, f"{queries[0].id}~2", queries[2].id, "mine"]
    assert [(q.source, q.row) for q in queries] == [("queries.jsonl", i) for i in range(4)]


def test_given_ids_are_kept_as_they_are_and_must_differ():
    assert [q.id for q in read_queries([{**PAIR, "id": "a~1"}, {**PAIR, "id": 0}], PLAIN)] == ["a~1", "0"]
    with pytest.raises(UsageError, match=r"\['a'\]"):
        read_queries([{**PAIR, "id": "a"}, {**PAIR, "id": "a"}], PLAIN)


def test_other_columns_are_mapped_and_the_rest_is_kept():
    rows = [{"prompts": "two and two", "response": "four", "variation": "sum"}]
    for columns in (None, "prompt=prompts,response=response"):
        example = read_queries(rows, PLAIN, columns=columns)[0]
        assert (example.prompt, example.meta["variation"]) == ("two and two", "sum")


def test_a_misspelt_field_is_refused():
    with pytest.raises(UsageError, match="alternativ'"):
        query(PLAIN, **PAIR, alternativ="London")


def test_a_label_that_is_no_class_is_kept_as_meta():
    assert query(PLAIN, **PAIR, label="x").meta["label"] == "x"
    assert query(PLAIN, **PAIR, label="x").label is None


def test_a_classified_query():
    tokenizer = bert_tokenizer()
    for fields in ({"text": "good film"}, {"prompt": "good film"}):
        example = query(tokenizer, **fields, label="good", label2id={"bad": 0, "good": 1})
        assert example.id == load_corpus([{"text": "good film", "label": 1}], tokenizer).examples[0].id
    with pytest.raises(UsageError, match="without the classes' names"):
        query(tokenizer, text="good film", label="good")
    with pytest.raises(DataError, match="not among the model's classes"):
        query(tokenizer, text="good film", label="great", label2id={"bad": 0, "good": 1})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "what"}, "no response"),
        ({"prompt": "what", "response": None}, "no response"),
        ({"prompt": "what", "response": " "}, "empty.*response is blank"),
        ({"prompt": "what", "response": 4}, "response is of type int"),
        ({"prompt": "what", "response": "a", "text": "b"}, "several ways"),
        ({**PAIR, "alternative": "London", "span": "Paris"}, "both"),
        ({**PAIR, "alternative": ""}, "blank"),
        ({"text": "hello there", "alternative": "b"}, "alternative but no response"),
        ({"messages": TALK["messages"][:1]}, "no assistant turn"),
        ({}, "no response"),
    ],
)
def test_an_incomplete_query_is_refused_by_its_number(fields, message):
    with pytest.raises(UsageError, match=f"query 1 of list.*{message}"):
        read_queries([PAIR, fields], CHAT)


def test_a_query_file_with_an_unreadable_line_is_refused(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps(PAIR) + "\n{\n" + json.dumps(PAIR) + "\n")
    with pytest.raises(DataError, match=r"queries\.jsonl row 1: line 2: invalid JSON"):
        read_queries(path, PLAIN)
