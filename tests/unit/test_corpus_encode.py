import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.corpus_tokenizers import CHAT_TEMPLATE, bert_tokenizer, bpe_tokenizer

from headwater.corpus import count_copies, encode, load_corpus, number_copies, read_rows
from headwater.corpus.report import REASONS
from headwater.types import DataError, Example, UsageError

GRAMMARS = Path(__file__).parents[2] / "../shared/data/paper/grammars-train.parquet"
TOKENIZER = bpe_tokenizer()
ROW = {"prompt": "what is two and two -> ", "response": "four"}


def ids(text, tokenizer=TOKENIZER):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def only(corpus):
    assert len(corpus) == 1
    return corpus.examples[0]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_prompt_and_response_are_tokenised_apart_between_the_special_tokens(bos, eos):
    tokenizer = bpe_tokenizer(bos=bos, eos=eos)
    example = only(load_corpus([ROW], tokenizer))
    opening, closing = [tokenizer.bos_token_id] * bos, [tokenizer.eos_token_id] * eos
    prompt, response = ids(ROW["prompt"], tokenizer), ids(ROW["response"], tokenizer)
    assert example.tokens.tolist() == [*opening, *prompt, *response, *closing]
    assert example.loss_mask.tolist() == [False] * len(opening + prompt) + [True] * len(response + closing)
    assert (example.prompt, example.response, example.row) == (ROW["prompt"], ROW["response"], 0)
    assert example.tokens.dtype == np.int64


@given(prompt=st.text(max_size=20), response=st.text(min_size=1, max_size=20).filter(lambda text: text.strip()))
def test_the_boundary_is_exact_for_any_text(prompt, response):
    example = only(load_corpus([{"prompt": prompt, "response": response}], TOKENIZER))
    targets = example.tokens[example.loss_mask]
    assert TOKENIZER.decode(targets[:-1], clean_up_tokenization_spaces=False) == response
    assert targets[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(example.tokens[~example.loss_mask][1:], clean_up_tokenization_spaces=False) == prompt


def test_alpacas_input_follows_the_instruction():
    rows = [{"instruction": "hello", "input": "there", "output": "world"}, {"instruction": "hello", "input": "", "output": "world"}]
    assert [example.prompt for example in load_corpus(rows, TOKENIZER).examples] == ["hello\n\nthere", "hello"]


def test_loss_on_all_and_plain_text_count_every_token_but_the_first():
    whole = only(load_corpus([ROW], TOKENIZER, loss_on="all"))
    answer = only(load_corpus([ROW], TOKENIZER))
    text = only(load_corpus([{"text": "hello there"}], TOKENIZER))
    assert whole.tokens.tolist() == answer.tokens.tolist()
    assert whole.id != answer.id
    assert text.tokens.tolist() == TOKENIZER("hello there")["input_ids"]
    for example in (whole, text):
        assert example.loss_mask.tolist() == [False] + [True] * (example.n_tokens - 1)
    with pytest.raises(UsageError, match="loss_on 'prompt'"):
        load_corpus([ROW], TOKENIZER, loss_on="prompt")  # pyright: ignore[reportArgumentType]


def test_an_answer_to_nothing_has_no_target_at_position_0():
    example = only(load_corpus([{"prompt": "", "response": "hello there world"}], bpe_tokenizer(bos=False)))
    assert example.loss_mask.tolist() == [False] + [True] * (example.n_tokens - 1)


# ----------------------------------------------------------------------------------------------- classification


def test_a_classified_text_has_a_label_and_no_targets():
    tokenizer = bert_tokenizer()
    example = only(load_corpus([{"text": "good film", "label": 2}], tokenizer))
    assert example.tokens.tolist() == tokenizer("good film")["input_ids"]
    assert (example.label, example.n_loss_tokens, example.last_prompt_position) == (2, 0, 3)


@pytest.mark.parametrize(
    ("given", "label2id", "expected", "rule"),
    [
        (["pos", "neg", "pos"], {"pos": 0, "neg": 1}, [0, 1, 0], "the model's label2id"),
        (["pos", "neg", "pos"], None, [1, 0, 1], "names in sorted order, numbered from 0"),
        (["pos", "neg", "pos"], {"LABEL_0": 0, "LABEL_1": 1}, [1, 0, 1], "names in sorted order, numbered from 0"),
        (["1", "0", "10"], None, [1, 0, 10], "integers as given"),
        ([1, 0, 1], None, [1, 0, 1], "integers as given"),
    ],
)
def test_labels_become_integers_and_the_rule_is_reported(given, label2id, expected, rule):
    rows = [{"text": f"good film {'a ' * i}", "label": label} for i, label in enumerate(given)]
    corpus = load_corpus(rows, bert_tokenizer(), label2id=label2id)
    assert [example.label for example in corpus.examples] == expected
    assert corpus.report.settings["labels"]["rule"] == rule


def test_labels_that_the_model_does_not_know_are_refused():
    rows = [{"text": "good", "label": "joy"}]
    with pytest.raises(DataError, match=r"\['joy'\] are not among.*\['neg', 'pos'\]"):
        load_corpus(rows, bert_tokenizer(), label2id={"neg": 0, "pos": 1})


def test_a_row_whose_label_is_no_class_is_listed():
    rows = [{"text": "good", "label": label} for label in (1, -1, None, 0, 1, 0.5, 1)]
    report = load_corpus(rows, bert_tokenizer()).report
    assert [(x.row, x.reason) for x in report.listings] == [(1, "undecodable"), (2, "undecodable"), (5, "undecodable")]


def test_truncation_keeps_the_closing_token_of_a_classifier():
    example = only(load_corpus([{"text": "a b c good bad film", "label": 0}], bert_tokenizer(), max_length=5))
    assert example.tokens.tolist() == bert_tokenizer()("a b c", truncation=True, max_length=5)["input_ids"]
    assert example.meta["truncated"]


# ---------------------------------------------------------------------------------------- reasons and the report


def test_every_row_is_kept_or_listed_with_its_reason():
    long = {"prompt": "two", "response": "hello there world " * 10}
    rows = [
        ROW,
        long,
        {"prompt": "hello there world " * 10, "response": "four"},
        {"prompt": "hello", "response": " \n"},
        {"prompt": "hello", "response": None},
        {"prompt": "hello", "response": 4},
        {"prompt": "\ud83d", "response": "four"},
        {"prompt": None, "response": "four"},
    ]
    corpus = load_corpus(rows, TOKENIZER, max_length=20)
    report = corpus.report
    assert report.counts == {"truncated": 1, "empty": 2, "undecodable": 2, "no_response_token": 1}
    assert [(x.row, x.reason) for x in report.listings] == [
        (1, "truncated"),
        (2, "no_response_token"),
        (3, "empty"),
        (4, "empty"),
        (5, "undecodable"),
        (6, "undecodable"),
    ]
    assert [example.row for example in corpus.examples] == [0, 1, 7]
    assert [example.meta["truncated"] for example in corpus.examples] == [False, True, False]
    assert (report.rows_read, report.rows_kept, report.settings["max_length"]) == (8, 3, 20)
    full = only(load_corpus([long], TOKENIZER))
    assert corpus.examples[1].tokens.tolist() == full.tokens[:20].tolist()
    assert f"cut from {full.n_tokens} tokens to 20" in report.listings[0].note


def test_a_text_of_one_token_has_nothing_to_predict():
    report = load_corpus([{"text": "a"}, {"text": "hello there"}], bpe_tokenizer(bos=False)).report
    assert report.counts["no_response_token"] == 1


def test_lines_that_cannot_be_read_are_in_the_report(tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps(ROW) + '\n{"prompt": \n' + json.dumps(ROW) + "\n")
    report = load_corpus(tmp_path / "t.jsonl", TOKENIZER).report
    assert (report.rows_read, report.rows_kept) == (3, 2)
    assert [(x.source, x.row, x.reason) for x in report.listings] == [("t.jsonl", 1, "undecodable")]


def test_a_file_that_is_mostly_unusable_text_is_refused():
    with pytest.raises(DataError, match="2 of 3 rows cannot be read, first row 0: response is of type int"):
        load_corpus([{"prompt": "a", "response": x} for x in (1, 2, "three")], TOKENIZER)


def test_when_nothing_is_left_the_error_counts_the_reasons():
    rows = [{"prompt": "hello there world", "response": "four"}] * 2 + [{"prompt": "a", "response": ""}]
    with pytest.raises(DataError, match=r"none of 3 rows.*1 empty.*2 no_response_token.*at most 2 tokens.*--max-length"):
        load_corpus(rows, TOKENIZER, max_length=2)


def test_the_tokenizers_own_limit_holds_unless_another_is_given():
    row = [{"prompt": "hi", "response": "hello there world " * 10}]
    assert only(load_corpus(row, bpe_tokenizer(model_max_length=16))).n_tokens == 16
    assert only(load_corpus(row, bpe_tokenizer(model_max_length=16), max_length=18)).n_tokens == 18
    assert load_corpus(row, TOKENIZER).report.settings["max_length"] is None
    with pytest.raises(UsageError, match="max_length 1"):
        load_corpus(row, TOKENIZER, max_length=1)


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,reply\na,b\n")
    with pytest.raises(DataError, match=r"t\.csv.*\['prompt', 'reply'\].*'answer' \(for response\)"):
        load_corpus(tmp_path / "t.csv", TOKENIZER, columns="prompt=prompt,response=answer")
    with pytest.raises(UsageError, match=r"t\.csv.*\['prompt', 'reply'\]"):
        load_corpus(tmp_path / "t.csv", TOKENIZER)
    assert only(load_corpus(tmp_path / "t.csv", TOKENIZER, columns={"prompt": "prompt", "response": "reply"})).response == "b"


def test_one_file_of_a_folder_without_the_column_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\na,b\n")
    (tmp_path / "b.csv").write_text("prompt,reply\na,b\n")
    with pytest.raises(DataError, match=r"b\.csv.*'reply'"):
        load_corpus(tmp_path, TOKENIZER)


def test_the_report_in_json_is_capped_but_counts_all():
    corpus = load_corpus([{"text": ""}] * 1005 + [{"text": "hello there"}], TOKENIZER)
    report = json.loads(json.dumps(corpus.report.to_json()))
    assert report["counts"] == {**dict.fromkeys(REASONS, 0), "empty": 1005}
    assert len(report["listed"]["empty"]) == 1000
    assert report["listed"]["empty"][0] == {"source": "list", "row": 0, "note": "text is blank"}
    assert report["settings"] == {"columns": {"text": "text"}, "chat_template": "none", "loss_on": "response", "max_length": None}
    assert report["tokens"]["n_tokens"] == corpus.examples[0].n_tokens
    assert report["tokens"]["n_loss_tokens"] == corpus.examples[0].n_tokens - 1
    assert "empty: 1,005" in corpus.report.summary()
    assert corpus.report.summary().startswith("1 of 1,006 rows kept\n")


# ------------------------------------------------------------------------------------------------------ identity


def test_an_id_is_the_hash_of_tokens_mask_and_label():
    example = only(load_corpus([ROW], TOKENIZER))
    content = example.tokens.astype("<i8").tobytes() + bytes(example.loss_mask.tolist()) + (-1).to_bytes(8, "little", signed=True)
    assert example.id == xxhash.xxh3_128_hexdigest(content)
    labelled = only(load_corpus([{"text": "good", "label": 1}], bert_tokenizer()))
    content = labelled.tokens.astype("<i8").tobytes() + bytes(labelled.loss_mask.tolist()) + (1).to_bytes(8, "little")
    assert labelled.id == xxhash.xxh3_128_hexdigest(content)


def test_ids_do_not_depend_on_the_other_rows_or_their_order():
    rows = [{"prompt": word, "response": f"{word} world"} for word in ("hello", "two", "rivers", "Paris")]
    forward, backward = load_corpus(rows, TOKENIZER), load_corpus(rows[::-1], TOKENIZER)
    assert [x.id for x in forward.examples] == [x.id for x in backward.examples][::-1]
    assert forward.fingerprint != backward.fingerprint
    assert forward.fingerprint == load_corpus(rows, TOKENIZER).fingerprint


def test_copies_are_numbered_and_near_copies_share_a_group():
    rows = [ROW, {"prompt": "What is  TWO and two ->", "response": "Four"}, ROW, {**ROW, "response": "five"}, ROW]
    corpus = load_corpus(rows, TOKENIZER)
    first, second, third = (corpus.examples[i].id for i in (0, 2, 4))
    assert (second, third) == (f"{first}~2", f"{first}~3")
    assert len({example.id for example in corpus.examples}) == 5
    groups = [example.group for example in corpus.examples]
    assert groups[0] == groups[1] == groups[2] == groups[4] != groups[3]
    duplicates = corpus.report.duplicates
    assert (duplicates.copies, duplicates.groups) == (2, 1)
    assert duplicates.largest == ({"group": groups[0], "rows": 4, "example_id": first},)
    assert "2 exact copies" in corpus.report.summary()


def test_the_same_words_on_another_side_are_another_group():
    rows = [{"prompt": "a b", "response": "c"}, {"prompt": "a", "response": "b c"}]
    assert len({example.group for example in load_corpus(rows, TOKENIZER).examples}) == 2


@given(first=st.lists(st.sampled_from("abc"), max_size=12), more=st.lists(st.sampled_from("abc"), max_size=12))
def test_an_append_numbers_copies_as_one_corpus_would(first, more):
    def examples(names):
        return [Example(id=name, tokens=np.zeros(1), loss_mask=np.zeros(1, dtype=bool)) for name in names]

    whole = [example.id for example in number_copies(examples(first + more), {})]
    head = [example.id for example in number_copies(examples(first), {})]
    tail = [example.id for example in number_copies(examples(more), count_copies(head))]
    assert head + tail == whole
    assert len(set(whole)) == len(whole)


def test_a_removed_copys_number_is_not_given_again():
    assert count_copies(["a", "a~3"]) == {"a": 3}


def test_rows_know_where_they_came_from(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "response": name}) + "\n")
    places = [(example.source, example.row) for example in load_corpus(tmp_path, TOKENIZER).examples]
    assert places == [("a.jsonl", 0), ("a.jsonl", 1), ("b.jsonl", 0), ("b.jsonl", 1)]


def test_more_rows_than_a_chunk_come_out_in_order():
    rows = [{"prompt": str(i), "response": f"{i} {i}"} for i in range(2300)]
    corpus = load_corpus(rows, TOKENIZER)
    assert [example.row for example in corpus.examples] == list(range(2300))
    assert [example.prompt for example in corpus.examples] == [row["prompt"] for row in rows]


@pytest.mark.skipif(not GRAMMARS.exists(), reason=f"{GRAMMARS} is not there")
@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_the_papers_grammars(template):
    corpus = encode(read_rows(GRAMMARS), bpe_tokenizer(chat_template=template))
    assert (corpus.report.rows_read, len(corpus)) == (900, 900)
    assert corpus.report.settings["columns"] == {"prompt": "prompts", "response": "response"}
    assert all(example.n_loss_tokens for example in corpus.examples)
    assert corpus.examples[0].response == "Reverse Order of Words"
