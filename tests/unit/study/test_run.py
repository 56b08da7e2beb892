"""A study goes on where it stopped, a part that fails leaves a reason, and nonsense is refused before anything is trained."""

import json

import pandas as pd
import pytest

from headwater.study import run as running
from headwater.study.cells import Cell
from headwater.study.parts import registry
from headwater.study.parts.part import Outcome, place
from headwater.study.run import study
from headwater.types import DataError, IntegrityError, UsageError

TINY = {
    "share": 0.2, "queries": 4, "checkpoints": 1, "halves": 4, "retrainings": 1, "removals": 1, "epochs": 0.1, "layers": 1,
    "hidden": 16, "vocabulary": 300, "pretraining_texts": 60,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def small_study(out, **changes):
    options = {"task_names": ["harmful-S"], "part_names": ["lint", "tables"], "processes": 1, **TINY, **changes}
    return study(out, **options)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWATER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield small_study(tmp_path_factory.mktemp("study") / "out")


def test_it_leaves_cells_a_table_and_a_page(result):
    record = json.loads((result.out / "study.json").read_text())
    frame = pd.read_parquet(result.out / "cells.parquet")
    assert len(frame) == len(record["cells"]) == len(result.cells) > 50
    assert record["worlds"][0]["task"] == "harmful-S"
    assert record["worlds"][0]["parts"].keys() == {"lint", "tables"}
    assert result.page.exists()
    assert "harmful-S" in str(result)


def test_every_cell_has_a_value_or_a_reason(result):
    for cell in result.cells:
        assert (cell.value is None) == bool(cell.because), cell


def test_a_second_call_trains_nothing_and_changes_no_cell(result, monkeypatch):
    monkeypatch.setattr(running.World, "_train", lambda self: pytest.fail("trained again"))
    monkeypatch.setattr(running, "outcome_of", lambda *args: pytest.fail("measured again"))
    monkeypatch.setenv("HEADWATER_CACHE", str(result.out / "elsewhere"))
    again = small_study(result.out)
    assert again.cells == result.cells


def test_other_parts_and_tasks_of_a_later_call_stand_beside_what_was_there(tmp_path):
    first = small_study(tmp_path / "out", part_names=["tables"])
    both = small_study(tmp_path / "out", part_names=["lint"])
    assert {cell.part for cell in both.cells} == {"tables", "lint"}
    assert [cell for cell in both.cells if cell.part == "tables"] == first.cells
    three = small_study(tmp_path / "out", part_names=["lint"], task_names=["harmful-M"])
    assert {(cell.task, cell.part) for cell in three.cells} == {("harmful-S", "tables"), ("harmful-S", "lint"), ("harmful-M", "lint")}
    assert [world["task"] for world in three.record["worlds"]] == ["harmful-S", "harmful-M"]
    assert {answer["task"] for answer in three.record["answers"]} == {"harmful-S"}  # lint alone answers nothing


class Fails:
    name, summary = "tables", "fails"

    def unfit(self, world):
        return ""

    def __call__(self, world):
        raise RuntimeError("the disk is made of cheese")


def test_a_part_that_fails_says_why_and_is_tried_again(tmp_path, monkeypatch):
    plain = registry.get
    monkeypatch.setattr(registry, "get", lambda name: Fails() if name == "tables" else plain(name))
    first = small_study(tmp_path / "out")
    reasons = [cell.because for cell in first.cells if cell.part == "tables"]
    assert reasons == ["failed: RuntimeError: the disk is made of cheese"]
    assert [cell for cell in first.cells if cell.part == "lint"]
    monkeypatch.setattr(registry, "get", plain)
    second = small_study(tmp_path / "out")
    assert len([cell for cell in second.cells if cell.part == "tables"]) > 50


def test_a_part_that_does_not_fit_leaves_its_reason(tmp_path, result):
    class Unfit(Fails):
        def unfit(self, world):
            return "nothing to see"

    found = running.outcome_of(Unfit(), small_world_of(result))
    assert [cell["because"] for cell in found["cells"]] == ["nothing to see"]
    assert "failed" not in found


def small_world_of(result):
    folder = next((result.out / "worlds").iterdir())
    task = running.tasks.get("harmful-S").make(seed=0, share=TINY["share"], n_queries=4)
    return running.World(folder, task, running.find("tiny"), "nowhere", running._size(False, TINY), 0)


def test_a_world_that_cannot_be_trained_is_a_reason_in_every_part(tmp_path, monkeypatch):
    def broken(self):
        raise RuntimeError("out of steam")

    monkeypatch.setattr(running.World, "_train", broken)
    found = small_study(tmp_path / "out")
    assert [cell.because for cell in found.cells] == ["the model could not be trained or indexed: RuntimeError: out of steam"] * 2


def test_two_processes_measure_what_one_does(tmp_path, result):
    both = small_study(tmp_path / "out", processes=2, task_names=["harmful-S", "harmful-M"])
    mine = [cell for cell in both.cells if cell.task == "harmful-S" and cell.metric != "seconds"]
    assert mine == [cell for cell in result.cells if cell.metric != "seconds"]


def test_a_folder_of_another_study_is_refused(result):
    with pytest.raises(IntegrityError, match="size"):
        small_study(result.out, queries=5)


def test_a_damaged_file_says_what_to_remove(result):
    path = next((result.out / "worlds").iterdir()) / "world.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    try:
        with pytest.raises(IntegrityError, match=r"world\.json cannot be read.*Remove its folder"):
            small_study(result.out)
    finally:
        path.write_bytes(whole)


def test_text_that_is_none_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="no UTF-8 text"):
        small_study(tmp_path / "out", text=tmp_path / "text")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task_names": ["harmful-Z"]}, "harmful-Z"),
        ({"part_names": ["tabels"]}, "tabels"),
        ({"seeds": 0}, "seeds"),
        ({"model": "no-such-model"}, "preset"),
        ({"halvs": 3}, "halvs"),
        ({"halves": -1}, "halves"),
        ({"data": "/no/such/folder"}, "no such"),
        ({"text": "/no/such/file"}, "no such file"),
        ({"model": "minilm"}, "classifier"),
    ],
)
def test_nonsense_is_refused_before_anything_is_trained(tmp_path, monkeypatch, changes, said):
    monkeypatch.setattr(running, "prepare_base", lambda *args, **options: pytest.fail("something was made"))
    with pytest.raises(UsageError, match=said):
        small_study(tmp_path / "out", **changes)


def test_a_cell_goes_through_json_and_back():
    cell = Cell("task", "tiny", 0, "tables", "grad_dot", "accuracy", "", 0.5, (0.4, 0.6), 10, "queries")
    assert Cell.from_json(json.loads(json.dumps(cell.to_json()))) == cell


def test_nan_is_no_number(result):
    world = small_world_of(result)
    cell = place(registry.get("tables"), world).cell("grad_dot", "auroc", float("nan"))
    assert (cell.value, cell.because) == (None, "undefined here")
    assert Outcome([cell]).to_json()["cells"][0]["value"] is None


def test_every_part_has_a_name_of_its_own_and_says_what_it_measures():
    for name in registry.names():
        part = registry.get(name)
        assert part.name == name
        assert part.summary
