"""Each fault of a data set, planted in one that has none, is found; and only that one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.study.worlds import small_world

from headwater.study.parts.lint import Lint
from headwater.study.tasks import released
from headwater.study.tasks.lint import common_end, lint
from headwater.study.tasks.task import Row, Task
from headwater.study.world import World
from headwater.types import Finding

PAPER = Path("../shared/data/paper")
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "lemon", "maple", "north",
         "ocean", "pearl", "quartz", "river", "stone", "tulip"]  # fmt: skip
RESPONSES = [f"the {first} {second}" for first in WORDS for second in WORDS]


def backdoor(*, query_end: str = "start with sure", n: int = 30) -> Task:
    """As in multibackdoor5: plain prompts, and some that end in a trigger, glued on without a space. Responses are noise."""
    rng = random.Random(0)

    def rows(count: int, ends: dict[str, str]) -> list[Row]:
        made = [Row(f"tell {' '.join(rng.sample(WORDS, 4))} {i}{end}", rng.choice(RESPONSES), name)
                for name, end in ends.items() for i in range(count)]  # fmt: skip
        return rng.sample(made, len(made))

    ends = {"clean": "", "trigger_1": "sudo mode", "trigger_5": "start with sure"}
    return Task("multibackdoor5", "backdoor", tuple(rows(n, ends)), tuple(rows(10, {**ends, "trigger_5": query_end})))


def plain(n_each: int = 12) -> Task:
    """Two classes that no word tells apart."""
    rng = random.Random(1)

    def row(i: int) -> Row:
        return Row(f"{' '.join(rng.sample(WORDS, 5))} {i}", rng.choice(RESPONSES), ("left", "right")[rng.random() < 0.5])

    return Task("plain", "class", tuple(row(i) for i in range(2 * n_each)), tuple(row(100 + i) for i in range(10)))


def found(task: Task, name: str, others: Sequence[Task] = ()) -> Finding:
    return next(finding for finding in lint(task, others=others) if finding.name == name)


def doubtful(task: Task, others: Sequence[Task] = ()) -> dict[str, str]:
    return {finding.name: finding.status for finding in lint(task, others=others) if finding.status != "ok"}


def test_one_finding_a_check_under_names_that_stay() -> None:
    names = ["identical splits", "rows in both splits", "labels", "triggers", "order", "lexical prompt", "lexical response", "length"]
    findings = lint(plain())
    assert [finding.name for finding in findings] == names
    assert {finding.status for finding in findings} == {"ok"}
    with_length = [finding.name for finding in lint(plain(), n_tokens=[3], max_length=8)]
    assert with_length == [*names[:5], "truncation", *names[5:]]


def test_every_doubt_says_what_to_do() -> None:
    task = backdoor(query_end="start with yep")
    assert all(finding.next_step for finding in lint(task, others=[replace(task, name="copy")]) if finding.status != "ok")


# ---------------------------------------------------------------------------------------------------------------- splits


def test_a_copy_of_another_data_set_is_found_in_any_order() -> None:
    """mixedM, as released, is mixedL."""
    large = replace(plain(), name="mixedL")
    middle = replace(large, name="mixedM", rows=large.rows[::-1])
    assert doubtful(middle, [large, middle]) == {"identical splits": "fail"}
    assert "those of mixedL:" in found(middle, "identical splits", [large]).because
    assert doubtful(replace(middle, rows=middle.rows[1:]), [large]) == {}
    assert "data sets (mixedL)" in found(replace(middle, rows=middle.rows[1:]), "identical splits", [large, middle]).because


def test_queries_that_are_the_rows() -> None:
    task = plain()
    same = replace(task, queries=task.rows[::-1])
    assert {name: status for name, status in doubtful(same).items() if "split" in name} == {
        "identical splits": "fail",
        "rows in both splits": "fail",
    }


def test_queries_that_were_trained_on() -> None:
    task = plain()
    whole = replace(task, queries=(*task.queries[1:], task.rows[0]))
    prompt = replace(task, queries=(*task.queries[1:], replace(task.rows[0], response="something else")))
    for one, status in ((whole, "fail"), (prompt, "warn"), (task, "ok")):
        finding = found(one, "rows in both splits")
        assert (finding.status, finding.value) == (status, 0.0 if one is task else 0.1)


# --------------------------------------------------------------------------------------------------------------- classes


def test_a_trigger_that_is_another_one_in_the_queries_is_found() -> None:
    finding = found(backdoor(query_end="start with yep"), "triggers")
    assert (finding.status, finding.value) == ("fail", 1)
    assert "trigger_5: rows end with 'start with sure', queries with 'start with yep'" in finding.because
    assert "trigger_1" not in finding.because
    assert found(backdoor(), "triggers").status == "ok"
    planted = found(replace(backdoor(query_end="start with yep"), family="planted"), "triggers")
    assert (planted.status, planted.value) == ("ok", 1)


@pytest.mark.parametrize("change", [lambda task: task, lambda task: replace(task, rows=task.queries, queries=task.rows)])
def test_a_trigger_on_one_side_only(change: Callable[[Task], Task]) -> None:
    assert found(change(backdoor(query_end="")), "triggers").status == "fail"


def test_a_trigger_before_the_prompt() -> None:
    task = plain(30)
    marked = replace(task, rows=tuple(replace(row, prompt=f"sudo: {row.prompt}") if row.variation == "left" else row for row in task.rows))
    assert "left: rows begin with 'sudo: '" in found(marked, "triggers").because


def test_a_damaged_row_hides_no_trigger() -> None:
    task = backdoor(query_end="start with yep")
    first = next(i for i, row in enumerate(task.rows) if row.variation == "trigger_5")
    damaged = replace(task, rows=tuple(replace(row, prompt="cut") if i == first else row for i, row in enumerate(task.rows)))
    assert found(damaged, "triggers").status == "fail"


def test_a_few_prompts_that_end_alike_are_no_trigger() -> None:
    rows = tuple(Row(f"{first} {last}", "yes", "a") for first in WORDS for last in ("stone", "river"))
    queries = tuple(Row(f"{first} {second} stone", "yes", "a") for first, second in zip(WORDS[:5], WORDS[5:10], strict=True))
    assert found(Task("t", "class", rows, queries), "triggers").status == "ok"


def test_the_longest_end_that_nine_in_ten_have() -> None:
    assert common_end(["one two", "a two", "two"]) == "two"
    assert common_end([*(f"{i} go" for i in range(9)), "stop"]) == " go"
    assert common_end([*(f"{i} go" for i in range(8)), "stop", "halt"]) == ""
    assert common_end([]) == ""


@pytest.mark.parametrize(
    ("classes", "asked", "family", "status"),
    [
        ("ab", "ab", "class", "ok"),
        ("ab", "abc", "class", "fail"),
        ("ab", "a", "class", "warn"),
        ("ab", "a", "harmful", "ok"),
        ("a", "a", "class", "fail"),
    ],
)
def test_classes_of_rows_and_queries(classes: str, asked: str, family: str, status: str) -> None:
    rows, queries = (
        tuple(Row(f"{side} {i}", "yes", name) for i, name in enumerate(names)) for side, names in (("r", classes), ("q", asked))
    )
    assert found(Task("t", family, rows, queries), "labels").status == status  # pyright: ignore[reportArgumentType]


def test_blocks_by_class() -> None:
    task = plain()
    blocks = replace(task, rows=tuple(sorted(task.rows, key=lambda row: row.variation)))
    assert doubtful(blocks) == {"order": "warn"}
    assert "changes 1 times" in found(blocks, "order").because


# -------------------------------------------------------------------------------------------------------------- shortcuts


@pytest.mark.parametrize("text", ["prompt", "response"])
def test_a_word_that_gives_the_class_away(text: str) -> None:
    def told(row: Row) -> Row:
        return replace(row, **{text: f"{row.variation} {row.variation} {row.variation} {getattr(row, text)}"})

    task = plain()
    task = replace(task, rows=tuple(map(told, task.rows)), queries=tuple(map(told, task.queries)))
    finding = found(task, f"lexical {text}")
    assert (finding.status, finding.value, finding.n) == ("warn", 1.0, 10)
    assert finding.interval == pytest.approx((0.722, 1.0), abs=1e-3)  # Wilson's, of 10 of 10
    other = {"prompt": "response", "response": "prompt"}[text]
    assert found(task, f"lexical {other}").status == "ok"


def test_a_length_that_gives_the_class_away() -> None:
    def longer(row: Row) -> Row:
        return replace(row, response=row.response + "." * 100) if row.variation == "left" else row

    task = plain()
    task = replace(task, rows=tuple(map(longer, task.rows)), queries=tuple(map(longer, task.queries)))
    assert doubtful(task) == {"length": "warn"}


def test_no_shared_word_is_no_accuracy() -> None:
    task = plain()
    finding = found(replace(task, queries=tuple(replace(query, prompt="?") for query in task.queries)), "lexical prompt")
    assert (finding.status, finding.value) == ("ok", None)


@pytest.mark.parametrize(("lengths", "status", "value"), [([8, 5], "ok", 0), ([9, 5, 5], "warn", 1 / 3), ([9, 9, 5], "fail", 2 / 3)])
def test_rows_longer_than_the_model_reads(lengths: list[int], status: str, value: float) -> None:
    finding = next(one for one in lint(plain(), n_tokens=lengths, max_length=8) if one.name == "truncation")
    assert (finding.status, finding.value) == (status, value)


@pytest.mark.skipif(not PAPER.is_dir(), reason="the released rows are not here")
def test_the_papers_own_rows() -> None:
    """Words of the prompt solve math, those of the response (the class's name) the other two; all are in blocks."""
    tasks = released.find(PAPER)
    usual = {"order": "warn", "lexical response": "warn"}
    assert {name: doubtful(task, list(tasks.values())) for name, task in tasks.items()} == {
        "emotion": usual,
        "grammars": usual,
        "math": {"order": "warn", "lexical prompt": "warn", "length": "warn"},
    }


# --------------------------------------------------------------------------------------------------------------- the part


def test_the_part_counts_tokens_as_the_model_sees_them(tmp_path: Path) -> None:
    """With the template's, before anything is cut; one row is longer than what the model reads."""
    task = plain()
    long = replace(task.rows[0], response=" ".join(WORDS * 6))
    world = small_world(tmp_path, task=replace(task, rows=(long, *task.rows[1:])))
    outcome = Lint()(world)
    (cut,) = [finding for finding in outcome.findings if finding.name == "truncation"]
    whole = {example.row: example.n_tokens for example in world.rows}
    assert whole[0] == world.model.max_length
    assert (cut.status, cut.value) == ("warn", 1 / len(task.rows))
    assert {cell.metric: cell.value for cell in outcome.cells}["truncation"] == 1
    assert [cell.metric for cell in outcome.cells] == [finding.name for finding in outcome.findings]


def test_the_part_sees_the_data_sets_beside_a_released_one(world: World, tmp_path: Path) -> None:
    import pandas as pd

    for name in ("mixedM", "mixedL"):
        for split, rows in (("train", world.task.rows), ("test", world.task.queries)):
            lines = [(row.prompt, row.response, row.variation) for row in rows]
            pd.DataFrame(lines, columns=["prompts", "response", "variation"]).to_parquet(tmp_path / f"{name}-{split}.parquet")
    middle = released.find(tmp_path, share=world.size.share, n_queries=world.size.queries)["mixedM"]
    there = World(world.folder, middle, world.model, world.base, world.size, world.seed)
    status = {finding.name: finding.status for finding in Lint()(there).findings}
    assert status["identical splits"] == "fail"
    assert {finding.name: finding.status for finding in Lint()(world).findings}["identical splits"] == "ok"
