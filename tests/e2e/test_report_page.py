"""The report in a real browser, from a file: hostile rows do nothing and can be read, and every control works."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.report import write_report
from tests.report_sample import HOSTILE, LONG, sample_audit, sample_trace, write_sample_run

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webdriver import WebDriver  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="Debian's chromium and chromium-driver are not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    profile = tmp_path_factory.mktemp("profile")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        yield driver
        driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control query's rows are the hostile ones; the first of them is on the page as soon as it opens."""
    trace = sample_trace()
    hostile = [id for id, row in trace["rows"].items() if row["prompt"] in HOSTILE]
    ranked = trace["queries"][2]["ranked"]["grad_cos"]
    ranked["proponents"] = [
        {**ranked["proponents"][0], "id": id, "score": 0.9 - n / 20} for n, id in enumerate([*hostile, list(trace["rows"])[-1]])
    ]
    trace["queries"][0]["response"] = trace["queries"][0]["tokens"][-1]["text"] = HOSTILE[0]
    trace["model"] = HOSTILE[2]
    audit = sample_audit()
    audit["plots"][0].update(title=HOSTILE[2], y=HOSTILE[5])
    audit["plots"][2]["series"][0]["x"][0] = HOSTILE[4]
    return write_report(write_sample_run(tmp_path_factory.mktemp("run"), trace=trace, audit=audit))


@pytest.fixture
def page(browser: WebDriver, report: Path) -> Iterator[WebDriver]:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(browser, "light")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get("about:blank")
    browser.get(report.as_uri())
    browser.execute_script("localStorage.clear()")
    yield browser
    assert browser.execute_script("return window.__pwned") is None
    assert browser.get_log("browser") == []


def emulate(browser: WebDriver, scheme: str) -> None:
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})


def all_of(browser: WebDriver, selector: str) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def one(browser: WebDriver, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def text_of(browser: WebDriver, selector: str) -> str:
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def click(browser: WebDriver, selector: str, number: int) -> None:
    browser.execute_script("arguments[0].click()", all_of(browser, selector)[number])


def requested(browser: WebDriver) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def background(browser: WebDriver) -> str:
    return browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")


# -------------------------------------------------------------------------------------------------------- security


def open_everything(browser: WebDriver) -> None:
    """Every query, every method, every expander."""
    for query in range(len(all_of(browser, ".query-tabs [role=tab]"))):
        click(browser, ".query-tabs [role=tab]", query)
        for method in range(len(all_of(browser, ".method-tabs [role=tab]"))):
            click(browser, ".method-tabs [role=tab]", method)
            browser.execute_async_script(
                "document.querySelectorAll('details').forEach((d) => { d.open = true; }); setTimeout(arguments[0], 30)"
            )


def test_hostile_rows_do_nothing_whatever_is_opened(page: WebDriver, report: Path) -> None:
    open_everything(page)
    assert page.execute_script("return window.__pwned") is None
    assert len(all_of(page, "script")) == 2
    assert all_of(page, "img, iframe, object, embed, form, input, base, #app a, #app style, [onerror], [onload], [onmouseover]") == []
    # chrome:// is the browser's own first tab, which may still be loading
    asked = [url for url in requested(page) if url not in {report.as_uri(), "about:blank"} and not url.startswith(("data:", "chrome://"))]
    assert asked == []


def test_the_policy_is_in_force(page: WebDriver) -> None:
    """If a row did become an element, it would still not run: the test plays the part of the mistake."""
    found = page.execute_async_script("""
        const done = arguments[0], seen = [];
        document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
        document.body.insertAdjacentHTML("beforeend", "<img id=planted src=x onerror='window.__pwned = 1'><p style='color:red'>");
        const script = document.createElement("script");
        script.textContent = "window.__pwned = 2";
        document.body.append(script);
        fetch("http://127.0.0.1:9/").catch(() => 0);
        setTimeout(() => done([window.__pwned ?? null, seen.sort()]), 200);
    """)
    page.get_log("browser")
    assert found[0] is None
    assert set(found[1]) == {"connect-src", "img-src", "script-src-attr", "script-src-elem", "style-src-attr"}


def test_hostile_text_is_legible(page: WebDriver) -> None:
    click(page, ".query-tabs [role=tab]", 2)
    shown = text_of(page, "#method-panel")
    for text in HOSTILE[:5]:
        assert text in shown
    for mark in ("U+202E", "U+2066", "U+200B", "U+2028", "U+0000", "U+001B", "U+D800", "U+E0049"):
        assert mark in shown
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b\u2028\0")
    assert HOSTILE[2] in text_of(page, "header")


def test_right_to_left_text_is_isolated(page: WebDriver) -> None:
    click(page, ".query-tabs [role=tab]", 2)
    passages = page.execute_script(
        "return [...document.querySelectorAll('.ranked .passage')].map((p) => p.querySelector('bdi[dir=auto]') !== null)"
    )
    assert passages
    assert all(passages)
    assert page.execute_script("return getComputedStyle(document.querySelector('.ranked bdi')).unicodeBidi") == "isolate"


def test_a_row_of_a_megabyte_is_shown_in_part(page: WebDriver) -> None:
    click(page, ".query-tabs [role=tab]", 2)
    shown = text_of(page, "#method-panel")
    assert f"Show the first 20,000 of {len(LONG):,} characters" in shown
    before = len(shown)
    page.execute_async_script(
        "document.querySelectorAll('.ranked .passage details').forEach((d) => { d.open = true; }); setTimeout(arguments[0], 30)"
    )
    after = text_of(page, "#method-panel")
    assert 20_000 <= len(after) - before < 21_000
    assert f"{len(LONG) - 20_000:,} more characters are in the source" in after


# -------------------------------------------------------------------------------------------------------- behaviour


def first_score(browser: WebDriver) -> str:
    return text_of(browser, ".ranked tbody .number:nth-child(2)")


def test_switching_query_and_method(page: WebDriver) -> None:
    trace = sample_trace()
    planted, ordinary = trace["queries"][0]["ranked"], trace["queries"][1]["ranked"]
    assert f"{planted['grad_cos']['proponents'][0]['score']:.3f}" in first_score(page)
    click(page, ".query-tabs [role=tab]", 1)
    assert "ordinary" in text_of(page, ".panel-head")
    assert f"{ordinary['grad_cos']['proponents'][0]['score']:.3f}" in first_score(page)
    click(page, ".method-tabs [role=tab]", 1)
    assert text_of(page, ".method-tabs [aria-selected=true]") == "grad_dot"
    assert f"{ordinary['grad_dot']['proponents'][0]['score'] * 1e6:.1f}" in first_score(page)
    assert "10⁻⁶ nats" in text_of(page, ".ranked thead")
    assert page.current_url.endswith("#query-1/grad_dot")


def test_each_query_shows_its_verdict_and_what_decided_it(page: WebDriver) -> None:
    told = []
    for query in range(3):
        click(page, ".query-tabs [role=tab]", query)
        told.append(text_of(page, ".query-verdict"))
    assert "supported" in told[0]
    assert "11 times as far" in told[0]
    assert HOSTILE[1] in told[1]
    assert "unknown" in told[2]
    assert [mark.get_attribute("textContent") for mark in all_of(page, ".tab-verdict")] == ["supported", "contradicted", "unknown"]


def test_plots_are_whole_drawings(page: WebDriver) -> None:
    """A text that ended a drawing would leave its marks outside it."""
    assert len(all_of(page, ".plot > svg")) == 4
    assert all_of(page, ".plot > :not(svg, h3, p, details)") == []
    assert len(all_of(page, ".plot > svg .mark, .plot > svg .bar")) == 7 + 12 + 5 + 5
    inside = page.execute_script("""
        return [...document.querySelectorAll(".plot > svg")].every((svg) => {
          const box = svg.getBoundingClientRect();
          return [...svg.querySelectorAll(".mark, .bar, .tick")].every((mark) => {
            const at = mark.getBoundingClientRect();
            return at.left >= box.left - 2 && at.right <= box.right + 2 && at.top >= box.top - 2 && at.bottom <= box.bottom + 2;
          });
        });
    """)
    assert inside


def test_the_primary_method_is_first_and_chosen(page: WebDriver) -> None:
    assert [tab.text.split(" ")[0] for tab in all_of(page, ".method-tabs [role=tab]")] == [
        "grad_cos",
        "grad_dot",
        "repsim",
        "lexical",
        "length",
        "random",
    ]
    assert text_of(page, ".method-tabs [aria-selected=true]") == "grad_cos primary"


def test_a_link_opens_its_query(page: WebDriver, report: Path) -> None:
    click(page, ".summary a", 2)
    assert "control" in text_of(page, ".panel-head")
    page.get("about:blank")
    page.get(f"{report.as_uri()}#query-1/repsim")
    assert "ordinary" in text_of(page, ".panel-head")
    assert text_of(page, ".method-tabs [aria-selected=true]") == "repsim"
    page.get("about:blank")
    page.get(f"{report.as_uri()}#query-77/repsim")
    assert "planted" in text_of(page, ".panel-head")
    page.get("about:blank")
    page.get(f"{report.as_uri()}#query-1/%E0%A4%A")
    assert "ordinary" in text_of(page, ".panel-head")


def test_the_keyboard_reaches_everything(page: WebDriver) -> None:
    all_of(page, ".query-tabs [role=tab]")[0].send_keys(Keys.ARROW_DOWN)
    assert page.switch_to.active_element.get_attribute("id") == "query-tab-1"
    assert "ordinary" in text_of(page, ".panel-head")
    page.switch_to.active_element.send_keys(Keys.END)
    assert "control" in text_of(page, ".panel-head")
    all_of(page, ".method-tabs [role=tab]")[0].send_keys(Keys.ARROW_LEFT)
    assert text_of(page, ".method-tabs [aria-selected=true]") == "random"
    assert [tab.get_attribute("tabindex") for tab in all_of(page, ".method-tabs [role=tab]")] == ["-1"] * 5 + ["0"]


def test_a_row_shows_its_score_by_token(browser: WebDriver, tmp_path: Path) -> None:
    trace = sample_trace()
    first = trace["queries"][0]["ranked"]["grad_cos"]["proponents"][0]["id"]
    matrix = {"id": first, "row_tokens": [HOSTILE[0], " plain"], "values": [[0.5, 1.0], [0.5, -3.0]]}
    trace["queries"][0]["token_scores"] = [matrix]
    browser.get(write_report(write_sample_run(tmp_path, trace=trace)).as_uri())
    (shown,) = all_of(browser, ".row-tokens")
    assert not shown.get_attribute("open")
    browser.execute_script("arguments[0].open = true", shown)
    marks = all_of(browser, ".row-tokens .token")
    assert [browser.execute_script("return arguments[0].textContent", mark) for mark in marks] == matrix["row_tokens"]
    assert [float(browser.execute_script("return arguments[0].style.getPropertyValue('--strength')", mark)) for mark in marks] == [0.5, 1]
    assert ["positive" in str(mark.get_attribute("class")) for mark in marks] == [True, False]
    assert browser.execute_script("return window.__pwned") is None


def test_tokens_show_their_numbers(page: WebDriver) -> None:
    click(page, ".query-tabs [role=tab]", 1)
    target = [token for token in sample_trace()["queries"][1]["tokens"] if token["target"]]
    tokens = all_of(page, ".token")
    assert [page.execute_script("return arguments[0].textContent", token) for token in tokens] == [token["text"] for token in target]
    strengths = [float(page.execute_script("return arguments[0].style.getPropertyValue('--strength')", token)) for token in tokens]
    largest = max(abs(token["contribution"]) for token in target)
    assert strengths == pytest.approx([abs(token["contribution"]) / largest for token in target])
    for token, mark in zip(target, tokens, strict=True):
        assert ("positive" if token["contribution"] > 0 else "negative") in (mark.get_attribute("class") or "")
    tokens[0].send_keys(Keys.ARROW_RIGHT)
    assert "log-probability" in text_of(page, ".token-detail")
    assert target[1]["text"].strip() in text_of(page, ".token-detail")


def test_folds_hubs_planted_rows_and_baselines_are_marked(page: WebDriver) -> None:
    assert all_of(page, ".ranked .badge-planted")
    assert "#240 by z" in text_of(page, ".ranked .badge-hub")
    assert "near-duplicate" in text_of(page, ".ranked")
    assert "Planted rows found" in text_of(page, ".matrix tfoot")
    assert "it shares" in text_of(page, ".comparison")
    assert len(all_of(page, ".ranked .bar-chart .whisker")) == 3 * len(all_of(page, ".ranked .bar-chart"))


def test_light_dark_and_the_toggle(page: WebDriver) -> None:
    light = background(page)
    emulate(page, "dark")
    dark = background(page)
    assert light != dark
    click(page, "#theme", 0)
    assert text_of(page, "#theme") == "Theme: light"
    assert background(page) == light
    click(page, "#theme", 0)
    emulate(page, "light")
    assert background(page) == dark
    click(page, "#theme", 0)
    assert background(page) == light


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const parse = (color) => {
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
};
const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const luminance = (color) => parse(color).map(linear).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const probe = document.body.appendChild(document.createElement("i"));
const of = (name) => { probe.style.color = `var(--${name})`; return luminance(getComputedStyle(probe).color); };
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const names = ["ink", "quiet", "link", "ok", "warn", "fail", "positive", "negative"];
return Object.fromEntries(names.map((n) => [n, Math.min(ratio(of(n), of("paper")), ratio(of(n), of("surface")))]));
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_colour_has_contrast(page: WebDriver, scheme: str) -> None:
    emulate(page, scheme)
    ratios = page.execute_script(CONTRAST)
    assert {name: round(ratio, 2) for name, ratio in ratios.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(page: WebDriver, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    for query in range(3):
        click(page, ".query-tabs [role=tab]", query)
        page.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_without_scripts_the_summary_stands(browser: WebDriver, report: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(report.as_uri())
        body = one(browser, "main").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "This part needs scripts, which are off" in body
    assert "Which moon of Saturn smells of almonds?" in body
    assert "Seven rows are in the first ten" in body
    assert "\N{MINUS SIGN}24.61" in body


def test_every_control_has_a_name_and_every_id_is_its_own(page: WebDriver) -> None:
    found: dict[str, Any] = page.execute_script("""
        const named = (n) => (n.getAttribute("aria-label") ?? n.textContent).trim() !== "";
        const controls = "a, button, summary, [role=img], [role=region], th";
        const ids = [...document.querySelectorAll("[id]")].map((n) => n.id);
        const pointers = ["aria-controls", "aria-labelledby"];
        const refs = pointers.flatMap((name) => [...document.querySelectorAll(`[${name}]`)].map((n) => n.getAttribute(name)));
        return {
          nameless: [...document.querySelectorAll(controls)].filter((n) => !named(n)).map((n) => n.outerHTML),
          repeated: ids.filter((id, i) => ids.indexOf(id) !== i),
          dangling: refs.filter((id) => !document.getElementById(id)),
          headings: document.querySelectorAll("h1").length,
        };
    """)
    assert found == {"nameless": [], "repeated": [], "dangling": [], "headings": 1}
