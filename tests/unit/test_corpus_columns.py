import pytest

from headwater.corpus import Columns
from headwater.corpus.columns import as_columns
from headwater.types import DataError, UsageError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["prompts", "response", "variation"], {"prompt": "prompts", "response": "response"}),
        (["instruction", "input", "output"], {"prompt": "instruction", "response": "output", "input": "input"}),
        (["question", "answer"], {"prompt": "question", "response": "answer"}),
        (["prompt", "completion", "input"], {"prompt": "prompt", "response": "completion"}),
        (["id", "conversations"], {"messages": "conversations"}),
        (["text"], {"text": "text"}),
        (["text", "label"], {"text": "text", "label": "label"}),
        (["prompt", "response", "label"], {"prompt": "prompt", "response": "response"}),
    ],
)
def test_usual_names_are_detected(names, expected):
    assert Columns.detect(names).to_json() == expected


@pytest.mark.parametrize(
    "names",
    [
        ["Prompt", "Reply"],
        ["prompt", "question", "answer"],
        ["prompt", "response", "messages"],
        ["text", "prompt", "response"],
        ["label"],
        [],
    ],
)
def test_what_is_ambiguous_or_unknown_is_refused_with_the_columns_and_the_way_out(names):
    with pytest.raises(UsageError, match="--columns") as error:
        Columns.detect(names, source="train.csv")
    assert str(names) in str(error.value)
    assert "train.csv" in str(error.value)


def test_parse():
    assert Columns.parse("prompt=question, response=the=answer") == Columns(prompt="question", response="the=answer")
    assert Columns.parse("text=body,label=class").form == "classification"


@pytest.mark.parametrize(
    "spec", ["", "prompt", "prompt=", "prompt=a", "query=a,response=b", "text=a,text=b", "text=a,response=b", "input=a,text=b"]
)
def test_a_spec_that_is_not_one_complete_form_is_refused(spec):
    with pytest.raises(UsageError):
        Columns.parse(spec)


def test_a_mapped_column_that_is_absent_is_named_with_its_file():
    with pytest.raises(DataError, match=r"train\.csv.*'a', 'b'.*'answer' \(for response\)"):
        Columns(prompt="a", response="answer").check(["a", "b"], source="train.csv")


def test_a_mapping_may_name_columns_that_a_spec_could_not():
    assert as_columns({"text": "a,b=c"}) == Columns(text="a,b=c")
    assert as_columns("text=a") == as_columns(Columns(text="a")) == Columns(text="a")
    with pytest.raises(UsageError, match="role=column"):
        as_columns({"body": "a"})
