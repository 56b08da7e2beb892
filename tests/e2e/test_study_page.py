"""The page of a study in a real browser, from a file: hostile names do nothing, tables sort, one task is shown at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.report.study import write_page
from tests.e2e import test_report_page as report_page
from tests.study_sample import TASKS, write_sample_study

pytestmark = report_page.pytestmark
browser = report_page.browser
WebDriver = report_page.WebDriver
all_of, text_of, requested, background, emulate = (
    report_page.all_of, report_page.text_of, report_page.requested, report_page.background, report_page.emulate,
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(write_sample_study(tmp_path_factory.mktemp("study")))


@pytest.fixture
def page(browser: WebDriver, study: Path) -> Iterator[WebDriver]:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(browser, "light")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get("about:blank")
    browser.get(study.as_uri())
    browser.execute_script("localStorage.clear()")
    yield browser
    assert browser.execute_script("return window.__pwned") is None
    assert browser.get_log("browser") == []


def shown(page: WebDriver) -> list[str]:
    return page.execute_script("return [...document.querySelectorAll('.chapter')].filter((c) => c.offsetParent).map((c) => c.id)")


def go(page: WebDriver, address: str) -> None:
    page.execute_async_script("location.hash = arguments[0]; setTimeout(arguments[1], 60)", address)


def test_nothing_is_loaded_and_hostile_names_do_nothing(page: WebDriver, study: Path) -> None:
    go(page, "every-task")
    page.execute_async_script("document.querySelectorAll('details').forEach((d) => { d.open = true; }); setTimeout(arguments[0], 60)")
    assert len(all_of(page, "script")) == 1
    assert all_of(page, "img, iframe, object, embed, form, input, base, [onerror], [onload]") == []
    # chrome:// is the browser's own first tab, which may still be loading
    asked = [url for url in requested(page) if not url.startswith(("data:", "chrome://"))]
    assert set(asked) <= {study.as_uri(), "about:blank"}


def test_one_task_is_shown_and_the_address_says_which(page: WebDriver) -> None:
    assert shown(page) == ["task-0"]
    go(page, "task-2")
    assert shown(page) == ["task-2"]
    assert text_of(page, ".task-nav [aria-current]") == TASKS[2]
    go(page, "task-1-tables-note-0")
    assert shown(page) == ["task-1"]
    go(page, "claims")
    assert shown(page) == ["task-1"]
    go(page, "every-task")
    assert shown(page) == ["task-0", "task-1", "task-2"]


def column(page: WebDriver, name: str) -> list[str]:
    return page.execute_script(
        """const table = document.querySelector("#task-0 table.cells");
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === arguments[0]);
        return [...table.tBodies[0].rows].map((row) => row.cells[at].dataset.sort ?? row.cells[at].textContent);""",
        name,
    )


def sort(page: WebDriver, name: str) -> None:
    page.execute_script("[...document.querySelectorAll('#task-0 .sort')].find((b) => b.textContent === arguments[0]).click()", name)


def test_a_table_sorts_by_its_column_with_empty_cells_last(page: WebDriver) -> None:
    def numbers() -> list[float]:
        return [float(value) for value in column(page, "Accuracy") if is_number(value)]

    before = numbers()
    sort(page, "Accuracy")
    assert numbers() == sorted(before, reverse=True) != before
    assert not is_number(column(page, "Accuracy")[-1])
    sort(page, "Accuracy")
    assert numbers() == sorted(before)
    assert not is_number(column(page, "Accuracy")[-1])
    sort(page, "Method")
    assert column(page, "Method")[0] == "datainf"
    assert [heading.get_attribute("aria-sort") for heading in all_of(page, "#task-0 [aria-sort]")] == ["ascending"]


def is_number(value: str) -> bool:
    return value.replace(".", "", 1).isdigit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_and_text_stands_out(page: WebDriver, scheme: str) -> None:
    emulate(page, scheme)
    assert background(page) == {"light": "rgb(247, 248, 248)", "dark": "rgb(16, 21, 26)"}[scheme]
    ink = page.execute_script("return getComputedStyle(document.querySelector('.claim p')).color")
    assert ink != background(page)


def test_drawings_are_whole_and_heat_maps_are_pictures(page: WebDriver) -> None:
    sizes = page.execute_async_script("""
        const done = arguments[0], all = [...document.querySelectorAll("#task-0 image")];
        const size = (node) => {
          const picture = new Image();
          picture.src = node.getAttribute("href");
          return picture.decode().then(() => [picture.width, picture.height]);
        };
        Promise.all(all.map(size)).then(done);
    """)
    assert sizes == [[60, 12], [60, 12]]
    outside = page.execute_script("""
        return [...document.querySelectorAll("#task-0 .plot > svg")].filter((svg) => svg.checkVisibility()).flatMap((svg) => {
          const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll(".mark, .bar, .tick, .point, .label")].filter((mark) => {
            const at = mark.getBoundingClientRect();
            return at.left < box.left - 2 || at.right > box.right + 2 || at.top < box.top - 2 || at.bottom > box.bottom + 2;
          }).map((mark) => mark.textContent);
        });
    """)
    assert outside == []


@pytest.mark.parametrize("width", [420, 768, 1280])
def test_no_page_scrolls_sideways(page: WebDriver, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    go(page, "every-task")
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
