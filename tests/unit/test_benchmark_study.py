"""The tables of docs/study.md are those of the recorded studies, and the tables say what the cells say."""

import json

import pytest
from benchmarks.record import RESULTS
from benchmarks.study import MARK, PAGE, STUDIES, TABLES, Shown, kept, number, written
from tests.study_sample import write_sample_study

from headwater.study.reading import Way


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_sample_study(folder)
    return json.loads((folder / "study.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_is_recorded():
    result = json.loads((RESULTS / "study.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, result) == page
    assert {found["name"].partition("-")[0] for found in MARK.finditer(page)} == set(STUDIES) == {*STUDIES} & set(result)


def test_a_table_shows_the_pooled_cells(sample):
    shown = Shown(kept(sample))
    cells = [cell for cell in sample["cells"] if (cell["part"], cell["method"], cell["metric"]) == ("tables", "grad_dot", "accuracy")]
    task = cells[0]["task"]
    values = [cell["value"] for cell in cells if cell["task"] == task and cell["variant"] == cells[0]["variant"]]
    text = shown.text(task, "tables", Way("grad_dot", cells[0]["variant"]), "accuracy", interval=False)
    assert text == number(sum(values) / len(values))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_made_of_any_study(sample, name):
    text = TABLES[name](Shown(kept(sample)))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count(" | ") for line in lines}) <= 1


def test_other_marks_and_studies_stay_as_they_are(sample):
    page = "a\n<!--study:made-about-->\nold\n<!--/study-->\nb\n<!--study:paper-about-->\nold\n<!--/study-->\n"
    new = written(page, {"made": kept(sample)})
    assert new.startswith("a\n<!--study:made-about-->\n\n`")
    assert new.endswith("b\n<!--study:paper-about-->\nold\n<!--/study-->\n")
