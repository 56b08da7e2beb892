"""The page of a study as text: its numbers, its reasons, what is escaped, and that points lie where their numbers say."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tests.report_sample import HOSTILE
from tests.study_sample import REASON, TASKS, sample_study, write_heat, write_sample_study
from tests.unit.test_report_html import ALLOWED_TAGS, Elements, digest, visible

from headwater.evaluate.figure import Figure
from headwater.report.heat import LEVELS, narrowed, picture, read_heat
from headwater.report.scatter import Dot, Level, scatter
from headwater.report.study import render, write_page
from headwater.report.study_schema import chapters, parse_study, pool, runs_of, without
from headwater.report.study_tables import cell_table, letter
from headwater.types import DataError


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(write_sample_study(tmp_path_factory.mktemp("study"))).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


# -------------------------------------------------------------------------------------------------------- security


def test_names_of_the_study_add_no_element_and_no_handler(elements: Elements) -> None:
    assert {tag for tag, _ in elements.found} <= ALLOWED_TAGS | {"article", "image", "sup", "b"}
    assert [tag for tag, _ in elements.found].count("script") == 1
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert str(attributes.get("href", "#")).startswith(("#", "data:image/")), attributes


def test_the_policy_names_this_script_and_this_style(page: str, elements: Elements) -> None:
    policy = next(attributes["content"] for _, attributes in elements.found if attributes.get("http-equiv"))
    script, style = (re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("script", "style"))
    assert f"script-src {digest(script[0])}" in str(policy)
    assert f"style-src {digest(style[0])}" in str(policy)
    assert "default-src 'none'" in str(policy)


def test_the_script_never_parses_text_as_markup() -> None:
    script = resources.files("headwater.report").joinpath("assets", "study.js").read_text()
    for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "new Function", "setTimeout"):
        assert door not in script
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", script)


def test_every_link_inside_the_page_has_its_target(elements: Elements) -> None:
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    targets = {str(attributes["href"])[1:] for tag, attributes in elements.found if tag == "a" and "href" in attributes}
    assert targets <= set(ids)
    assert len(ids) == len(set(ids))


# --------------------------------------------------------------------------------------------------------- content


def test_answers_claims_tasks_and_provenance_are_there(page: str) -> None:
    text = visible(page)
    study = sample_study()
    for answer in study["answers"]:
        for sentence in (*answer["trust"], *answer["beware"]):
            assert sentence in text
    for claim in study["claims"]:
        assert claim["name"] in text
        assert claim["verdict"] in text
    n = sum(claim["verdict"] == "cannot be tested" for claim in study["claims"] if claim["origin"] != "planted")
    assert f"{n} cannot be tested" in text
    assert HOSTILE[0] in text
    for task in TASKS:
        assert f">{task}</bdi>" in page
    assert "A damping sweep" in text
    assert "Where the numbers come from" in text


def test_a_number_is_the_mean_over_seeds_with_its_interval_and_its_seeds() -> None:
    study = parse_study(sample_study())
    chapter = chapters(study)[0]
    one = next(one for one in chapter.find("tables", "accuracy") if one.method == "repsim")
    at = (TASKS[0], "tables", "repsim", "accuracy")
    values = [cell.value for cell in study.cells if (cell.task, cell.part, cell.method, cell.metric) == at]
    assert len(values) == 2
    assert one.value == pytest.approx(np.mean(values))
    table = str(cell_table([one], id="t", caption="c", strips=True))
    assert f"{np.mean(values):.2f}" in visible(table)
    assert table.count('class="seed"') == 2
    low, high = one.figure.interval  # type: ignore[union-attr, misc]
    assert f"{low:.2f} to {high:.2f}" in visible(table)
    assert f"seed 0: {values[0]:.3g}" in table


def test_an_empty_cell_shows_its_reason_once_as_a_footnote(page: str) -> None:
    part = page[page.index('id="task-0"') : page.index('id="task-1"')]
    notes = re.findall(r'<li id="task-0-tables-note-(\d+)">', part)
    assert notes == ["0"]
    assert part.count('href="#task-0-tables-note-0"') == 2
    assert REASON in visible(part)


def test_a_cell_that_only_one_seed_has_says_what_the_other_lacks() -> None:
    cells = [{"task": "t", "part": "tables", "method": "trak", "metric": "accuracy", "seed": seed} for seed in (0, 1)]
    pooled = pool(parse_study({"format": 1, "cells": [cells[0] | {"value": 0.5}, cells[1] | {"because": "it diverged"}]}).cells)
    text = visible(str(cell_table(pooled, id="t", caption="c")))
    assert "0.50" in text
    assert "a it diverged" in text


def test_findings_that_seeds_share_are_said_once(page: str) -> None:
    part = visible(page[page.index('id="task-0"') : page.index('id="task-1"')])
    assert part.count("TF-IDF alone has an accuracy of 0.9.") == 1
    assert "Seed 1: Seed 1 has no row in both splits." in part


def test_what_is_not_there_leaves_its_place_empty_and_no_heading(page: str) -> None:
    part = page[page.index('id="task-2"') :]
    assert "Right class, right cause" in page
    assert "Right class, right cause" not in part
    bare = render({"format": 1, "cells": [{"task": "t", "part": "tables", "method": "m", "metric": "accuracy", "value": 1.0}]})
    assert "Nothing was answered" in bare
    assert "Along the epochs" not in visible(bare)


def test_the_ceiling_and_the_class_are_lines_of_the_scatter(page: str) -> None:
    part = page[page.index('id="task-0-cause-title"') : page.index('id="task-1"')]
    assert "the class alone 0.38" in visible(part)
    assert "noise ceiling 0.8" in visible(part)


# ---------------------------------------------------------------------------------------------------------- drawings


def test_a_dot_lies_where_its_numbers_say() -> None:
    places = [(0, 0), (1, 0), (0.5, 1)]
    dots = [Dot("m", "g", Figure(x, None, 9, "queries"), Figure(y, (y - 0.1, y + 0.1), 9, "queries")) for x, y in places]
    svg = str(scatter("t", dots, [Level("top", Figure(1.0, None, 9, "queries"))], id="s", x_label="x", y_label="y"))
    at = [(float(x), float(y)) for x, y in re.findall(r'translate\((\S+) (\S+)\)" class="mark"', svg)]
    assert at[2][0] == pytest.approx((at[0][0] + at[1][0]) / 2, abs=0.02)
    assert at[0][1] == at[1][1] > at[2][1]
    assert f'y1="{at[2][1]:g}"' in svg
    assert scatter("t", [], [], id="s", x_label="x", y_label="y") is None


def test_a_heat_map_is_blue_above_the_mean_and_orange_below(tmp_path: Path) -> None:
    values_QN = np.array([[0.0, 0.0, 4.0, -4.0], [1.0, 1.0, 1.0, 1.0], [np.nan, 1.0, 2.0, 3.0]])
    (tmp_path / "heat.png").write_bytes(picture(values_QN))
    pixels = np.asarray(imread(tmp_path / "heat.png"))
    assert pixels.shape == (3, 4, 4)
    assert pixels[0, 2, 2] > pixels[0, 2, 0]  # blue
    assert pixels[0, 3, 0] > pixels[0, 3, 2]  # orange
    assert pixels[0, 2, 3] == pixels[0, 3, 3] > pixels[0, 0, 3] == 0
    assert not pixels[1, :, 3].any()
    assert pixels[2, 0, 3] == 0
    assert len(np.unique(pixels[..., 3])) <= LEVELS + 1


def test_a_wide_heat_map_keeps_its_hub() -> None:
    values_QN = np.zeros((2, 1000))
    values_QN[:, 777] = -3.0
    narrow_QN = narrowed(values_QN, widest=100)
    assert narrow_QN.shape == (2, 100)
    assert (narrow_QN[:, 77] == -3.0).all()


# ------------------------------------------------------------------------------------------------------------ errors


def test_a_folder_without_a_study_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="headwater study --out"):
        write_page(tmp_path)


@pytest.mark.parametrize("change", [{"format": 2}, {"cells": [{"task": "t"}]}, {"cells": [], "worlds": []}])
def test_another_shape_is_named(change: dict) -> None:
    with pytest.raises(DataError, match="not a study of format 1"):
        render(sample_study() | change)


def test_a_heat_map_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    study = sample_study()
    (tmp_path / "study").mkdir()
    write_heat(tmp_path / "heat.npz")
    study["worlds"] = [study["worlds"][0] | {"heat": "../heat.npz"}]
    (tmp_path / "study" / "study.json").write_text(json.dumps(study))
    with pytest.raises(DataError, match="not inside"):
        write_page(tmp_path / "study")


def test_a_heat_map_of_another_shape_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "heat.npz", train_class=np.zeros(3), query_class=np.zeros(2), classes=np.array(["a"]), repsim=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"repsim has the shape \(3, 2\), expected \(2, 3\)"):
        read_heat(tmp_path / "heat.npz")
    (tmp_path / "heat.npz").write_bytes(b"none")
    with pytest.raises(DataError, match="holds no heat maps"):
        read_heat(tmp_path / "heat.npz")


# ------------------------------------------------------------------------------------------------------------- words


def test_seeds_letters_and_variants_in_words() -> None:
    assert [runs_of([0]), runs_of([2, 0, 1]), runs_of([0, 2, 3])] == ["seed 0", "seeds 0 to 2", "seeds 0, 2 to 3"]
    assert [letter(at) for at in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]
    assert without("max_steps=10; epoch=3", "epoch") == "max_steps=10"
