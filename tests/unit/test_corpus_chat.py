import pytest
from tests.unit.corpus_tokenizers import CHAT_TEMPLATE, MARKED_TEMPLATE, THINKING_TEMPLATE, bpe_tokenizer

from headwater.corpus import encode, load_corpus, read_rows
from headwater.types import DataError, UsageError

TALK = [
    {"role": "user", "content": "what is two and two"},
    {"role": "assistant", "content": "the answer is four"},
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "hello world"},
]


def targets(tokenizer, example):
    """The targets as text, one string per run of neighbouring target tokens."""
    runs, last = [], -2
    for t in example.loss_mask.nonzero()[0]:
        runs[-1:] = [[*runs[-1], example.tokens[t]]] if t == last + 1 else [*runs[-1:], [example.tokens[t]]]
        last = t
    return [tokenizer.decode(run) for run in runs]


def only(corpus):
    assert len(corpus) == 1
    return corpus.examples[0]


def test_every_assistant_turn_is_a_target_and_nothing_else():
    tokenizer = bpe_tokenizer(chat_template=CHAT_TEMPLATE)
    example = only(load_corpus([{"messages": TALK}], tokenizer))
    assert targets(tokenizer, example) == ["the answer is four</s>\n", "hello world</s>\n"]
    assert tokenizer.decode(example.tokens) == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert example.prompt.endswith("<|user|>\nhello there</s>\n<|assistant|>\n")
    assert example.response == "hello world"


def test_the_tokens_are_those_of_the_tokenizers_own_rendering():
    tokenizer = bpe_tokenizer(chat_template=CHAT_TEMPLATE)
    example = only(load_corpus([{"messages": TALK}], tokenizer))
    assert example.tokens.tolist() == tokenizer.apply_chat_template(TALK)["input_ids"]


def test_a_template_that_marks_the_assistant_is_believed():
    tokenizer = bpe_tokenizer(chat_template=MARKED_TEMPLATE)
    example = only(load_corpus([{"messages": TALK}], tokenizer))
    assert targets(tokenizer, example) == ["the answer is four</s>", "hello world</s>"]
    mask = tokenizer.apply_chat_template(TALK, return_assistant_tokens_mask=True)["assistant_masks"]
    assert example.loss_mask.astype(int).tolist() == mask


def test_a_template_that_writes_the_last_turn_differently_is_followed():
    tokenizer = bpe_tokenizer(chat_template=THINKING_TEMPLATE)
    example = only(load_corpus([{"messages": TALK}], tokenizer))
    assert targets(tokenizer, example) == ["the answer is four</s>\n", "<think></think>hello world</s>\n"]


def test_a_generation_prompt_that_opens_a_thinking_block_is_followed_as_far_as_it_agrees():
    template = CHAT_TEMPLATE.replace(
        "{% if add_generation_prompt %}<|assistant|>\n", "{% if add_generation_prompt %}<|assistant|>\n<think>"
    )
    tokenizer = bpe_tokenizer(chat_template=template)
    assert targets(tokenizer, only(load_corpus([{"messages": TALK}], tokenizer)))[-1] == "hello world</s>\n"


def test_a_template_whose_turns_cannot_be_located_says_so():
    shifting = "{{ messages | length }}" + CHAT_TEMPLATE
    with pytest.raises(UsageError, match="generation"):
        load_corpus([{"messages": TALK}], bpe_tokenizer(chat_template=shifting))


def test_a_prompt_and_its_response_are_a_conversation_of_two():
    tokenizer = bpe_tokenizer(chat_template=CHAT_TEMPLATE)
    pair = only(load_corpus([{"prompt": TALK[0]["content"], "response": TALK[1]["content"]}], tokenizer))
    talk = only(load_corpus([{"messages": TALK[:2]}], tokenizer))
    assert pair.id == talk.id
    assert (pair.prompt, pair.response) == ("what is two and two", "the answer is four")


def test_white_space_at_the_edges_stays_on_its_side():
    """A byte-level tokenizer reports a token of white space as an empty range: it must not move over the boundary."""
    tokenizer = bpe_tokenizer()
    template = "{% for m in messages %}{{ m['role'][0] }}: {{ m['content'] }}{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
    example = only(load_corpus([{"prompt": "hello ", "response": "  four "}], tokenizer, chat_template=template))
    assert tokenizer.decode(example.tokens) == "u: hello a:   four "
    assert "".join(targets(tokenizer, example)).strip() == "four"
    assert "".join(targets(tokenizer, example)).endswith(" ")
    untargeted = tokenizer.decode(example.tokens[~example.loss_mask])
    assert untargeted.startswith("u: hello a:")


def test_a_template_comes_as_text_as_a_file_or_not_at_all(tmp_path):
    row, plain = [{"prompt": "hello", "response": "world"}], bpe_tokenizer()
    own = only(load_corpus(row, bpe_tokenizer(chat_template=CHAT_TEMPLATE)))
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE)
    assert only(load_corpus(row, plain, chat_template=CHAT_TEMPLATE)).id == own.id
    assert only(load_corpus(row, plain, chat_template=tmp_path / "chat.jinja")).id == own.id
    assert only(load_corpus(row, bpe_tokenizer(chat_template=CHAT_TEMPLATE), chat_template="none")).id == only(load_corpus(row, plain)).id
    with pytest.raises(UsageError, match=r"none\.jinja"):
        load_corpus(row, plain, chat_template="none.jinja")
    with pytest.raises(UsageError, match="not valid Jinja"):
        load_corpus(row, plain, chat_template="{% for %}")


def test_messages_without_a_template_are_refused():
    with pytest.raises(UsageError, match="no chat template"):
        load_corpus([{"messages": TALK}], bpe_tokenizer())


def test_sharegpt_names_and_arrows_nulls_are_understood():
    tokenizer = bpe_tokenizer(chat_template=CHAT_TEMPLATE)
    theirs = [{"from": "human", "value": TALK[0]["content"]}, {"from": "gpt", "value": TALK[1]["content"], "weight": None}]
    assert only(load_corpus([{"conversations": theirs}], tokenizer)).id == only(load_corpus([{"messages": TALK[:2]}], tokenizer)).id


def test_conversations_that_cannot_be_used_are_listed():
    refusing = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user speaks first') }}{% endif %}" + CHAT_TEMPLATE
    tokenizer = bpe_tokenizer(chat_template=refusing)
    bad = [
        None,
        "hello",
        [{"content": "no role"}],
        [{"role": "user", "content": ["parts"]}],
        TALK[1:],
        TALK[:1],
        [TALK[0], {"role": "assistant", "content": " "}],
        [{"role": "user", "content": "\ud800"}, TALK[1]],
        [],
    ]
    report = encode(read_rows([{"messages": talk} for talk in [*bad, *[TALK] * 9]]), tokenizer).report
    reasons = [(x.row, x.reason) for x in report.listings]
    wrong = [(1, "undecodable"), (2, "undecodable"), (3, "undecodable"), (4, "undecodable"), (7, "undecodable")]
    assert reasons == sorted([(0, "empty"), *wrong, (5, "no_response_token"), (6, "empty"), (8, "empty")])
    assert "the user speaks first" in report.listings[4].note
    assert report.rows_kept == 9


def test_loss_on_all_needs_no_answer():
    tokenizer = bpe_tokenizer(chat_template=CHAT_TEMPLATE)
    example = only(load_corpus([{"messages": TALK[:1]}], tokenizer, loss_on="all"))
    assert example.loss_mask.tolist() == [False] + [True] * (example.n_tokens - 1)


def test_when_most_conversations_are_refused_the_template_is_to_blame():
    with pytest.raises(DataError, match=r"1 of 1 rows.*refuses it: no"):
        load_corpus([{"messages": TALK}], bpe_tokenizer(), chat_template="{{ raise_exception('no') }}")
