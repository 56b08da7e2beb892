"""Data sets from files: which are found, what is taken of them, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
import pandas as pd
import pytest

from headwater.progress import quiet
from headwater.study.tasks import released
from headwater.types import DataError, UsageError

PAPER = Path("../shared/data/paper")


def table(prefix: str, *, classes: Sequence[str] = ("a", "b"), n: int = 10, prompt: str = "prompts") -> pd.DataFrame:
    """n rows of each class, sorted by class as the released ones are."""
    lines = [(f"{prefix} {name} {i}", f"it is {name}", name) for name in classes for i in range(n)]
    return pd.DataFrame(lines, columns=[prompt, "response", "variation"])


def write(folder: Path, name: str, train: pd.DataFrame | None, test: pd.DataFrame | None) -> None:
    for split, rows in (("train", train), ("test", test)):
        if rows is not None:
            rows.to_parquet(folder / f"{name}-{split}.parquet")


def save(folder: Path, **splits: pd.DataFrame) -> None:
    made = {name: datasets.Dataset.from_pandas(rows, preserve_index=False) for name, rows in splits.items()}
    with quiet():
        datasets.DatasetDict(**made).save_to_disk(str(folder))


def test_parquet_files_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "moods", table("row"), table("query", n=3, prompt="prompt"))
    (task,) = released.find(tmp_path).values()
    assert (task.name, task.family, task.k, task.classes) == ("moods", "class", None, ["a", "b"])
    assert task.source == str(tmp_path / "moods-train.parquet")
    assert [row.prompt for row in task.rows] == table("row").prompts.tolist()
    assert (task.queries[0].prompt, task.queries[0].response, task.queries[-1].variation) == ("query a 0", "it is a", "b")


def test_a_saved_folder_and_a_folder_of_them(tmp_path: Path) -> None:
    for name in ("multibackdoor", "emotion"):
        save(tmp_path / name, train=table(name), test=table("query", n=3))
    found = released.find(tmp_path)
    assert [(name, task.family, len(task.rows), len(task.queries)) for name, task in found.items()] == [
        ("emotion", "class", 20, 6),
        ("multibackdoor", "backdoor", 20, 6),
    ]
    assert released.find(tmp_path / "emotion") == {"emotion": found["emotion"]}
    assert released.read(found["emotion"].source) == found["emotion"]


def test_siblings_are_the_others_that_can_be_read(tmp_path: Path) -> None:
    save(tmp_path / "one", train=table("row"), test=table("query"))
    write(tmp_path, "two", table("row"), table("query"))
    write(tmp_path, "broken", table("row"), None)
    assert [task.name for task in released.siblings(tmp_path / "one")] == ["two"]
    (one,) = released.siblings(tmp_path / "two-train.parquet", share=0.5, n_queries=2)
    assert (one.name, len(one.rows), len(one.queries)) == ("one", 10, 2)


def test_harmful_data_has_as_many_places_as_harmful_rows(tmp_path: Path) -> None:
    train = pd.concat([table("h", classes=["harmful"], n=20), table("b", classes=["benign"], n=60)])
    write(tmp_path, "mixedM", train, table("q", classes=["harmful"], n=30))
    task = released.find(tmp_path)["mixedM"]
    assert (task.family, task.k) == ("harmful", 20)
    assert released.find(tmp_path, share=0.4)["mixedM"].k == 8


def test_share_and_queries_keep_the_balance_and_the_order(tmp_path: Path) -> None:
    mixed = pd.concat([table("first", n=5), table("second", n=5)])  # a, b, a, b in blocks
    write(tmp_path, "moods", mixed, mixed)
    task = released.find(tmp_path, share=0.6, n_queries=4)["moods"]
    assert [row.prompt for row in task.rows] == [
        *(f"first {name} {i}" for name in "ab" for i in range(5)), "second a 0", "second b 0",
    ]  # fmt: skip
    assert [query.prompt for query in task.queries] == ["first a 0", "first a 1", "first b 0", "first b 1"]
    assert len(released.find(tmp_path, share=0.01)["moods"].rows) == 8
    assert len(released.find(tmp_path, n_queries=1000)["moods"].queries) == 20


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (table("row"), None, r"moods-test\.parquet: no such file"),
        (None, table("row"), r"moods-train\.parquet: no such file"),
        (table("row").drop(columns=["variation"]), table("q"), "no column variation; there are: prompts, response"),
        (table("row"), table("q", prompt="question"), "no column prompts or prompt; there are: question"),
        (table("row", n=0), table("q"), "no rows in it"),
        (table("row").assign(response=pd.Series([None, *["x"] * 19])), table("q"), "row 0 has no prompts, response or variation"),
    ],
    ids=["no test", "no train", "no class", "no prompt", "empty", "no text"],
)
def test_what_is_no_data_set_is_refused(train: pd.DataFrame | None, test: pd.DataFrame | None, message: str, tmp_path: Path) -> None:
    write(tmp_path, "moods", train, test)
    with pytest.raises(DataError, match=message):
        released.find(tmp_path)


def test_a_saved_folder_without_test_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "moods", train=table("row"))
    with pytest.raises(DataError, match="there is no split 'test', only train"):
        released.find(tmp_path)


def test_a_folder_without_data_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        released.find(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no data set in it"):
        released.find(tmp_path)
    write(tmp_path, "moods", table("row"), table("query"))
    with pytest.raises(UsageError, match="share is 0"):
        released.find(tmp_path, share=0)
    save(tmp_path / "moods", train=table("row"), test=table("query"))
    with pytest.raises(DataError, match="moods is there twice"):
        released.find(tmp_path)


@pytest.mark.skipif(not PAPER.is_dir(), reason="the released rows are not here")
def test_the_papers_own_files() -> None:
    found = released.find(PAPER, share=0.1, n_queries=20)
    assert {name: (task.family, len(task.rows), len(task.queries), len(task.classes)) for name, task in found.items()} == {
        "emotion": ("class", 75, 20, 5),
        "grammars": ("class", 90, 20, 10),
        "math": ("class", 90, 20, 10),
    }
