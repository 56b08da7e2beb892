"""The page as text: what is escaped, what its policy allows, what its data island holds, what it says of what is absent."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
from tests.report_sample import HOSTILE, LONG, sample_findings, sample_trace, write_sample_run

from headwater.report import render, write_report
from headwater.report.artefacts import find_trace
from headwater.report.markup import el, foreign, json_island
from headwater.report.schema import parse_trace
from headwater.report.view import TEXT_LIMIT, explorer
from headwater.types import DataError, UsageError

ALLOWED_TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "a", "p", "div", "nav", "button", "main", "header", "h1",
    "h2", "h3", "h4", "dl", "dt", "dd", "bdi", "strong", "span", "ul", "ol", "li", "svg", "path", "circle", "rect",
    "line", "polygon", "i", "table", "caption", "thead", "tbody", "tr", "th", "td", "br", "section", "noscript", "code",
    "pre", "details", "summary", "footer", "script", "figure", "g", "desc", "text", "polyline",
}  # fmt: skip


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text: list[str] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.raw[self._in].append(data) if self._in in self.raw else self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in = ""


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample_trace(), findings=sample_findings(), corpus={"counts": {"empty": 2}}, run={}, index={})


@pytest.fixture(scope="module")
def elements(page: str) -> Elements:
    return Elements(page)


def island(page: str) -> dict:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])


def digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


# -------------------------------------------------------------------------------------------------------- security


def test_training_text_adds_no_element_and_no_handler(elements: Elements) -> None:
    assert {tag for tag, _ in elements.found} <= ALLOWED_TAGS
    assert [tag for tag, _ in elements.found].count("script") == 2
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert "javascript:" not in (attributes.get("href") or "")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_text_field_is_inert(text: str) -> None:
    trace = sample_trace()
    trace.update(model=text, revision=text, created=text, headwater=text)
    trace["methods"][0].update(summary=text, provenance={text: text})
    trace["queries"][0].update(id=text, kind=text, prompt=text, response=text, alternative=text)
    trace["queries"][0]["tokens"][-1]["text"] = text
    trace["experiment"].update(title=text, note=text, method=text)
    trace["experiment"]["queries"][0].update(id=text, kind=text, precision_at_10={text: 0.5})
    finding = {"name": text, "status": "warn", "because": text, "unit": text, "value": 1.0, "next_step": text}
    page = render(
        trace,
        findings=[finding],
        corpus={text: {text: text}, "listed": {text: [text]}},
        run={"scope": {"outside": [text, {"reason": text, "names": [text]}]}},
        index={text: text},
        name=text,
    )
    found = Elements(page).found
    assert {tag for tag, _ in found} <= ALLOWED_TAGS
    assert [tag for tag, _ in found].count("script") == 2
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    assert not re.search("[\0\x1b\u202a-\u202e\u2066-\u2069\u2028\u2029\u200b\ud800-\udfff\U000e0000-\U000e007f]", page)
    page.encode("utf-8")


def test_the_policy_allows_this_script_and_this_style_only(elements: Elements) -> None:
    policy = next(a["content"] for tag, a in elements.found if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": digest(elements.raw["script"][1]),
        "style-src": digest("".join(elements.raw["style"])),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_the_page_names_no_address_to_load_from(elements: Elements) -> None:
    for tag, attributes in elements.found:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    css = "".join(elements.raw["style"])
    assert "url(" not in css
    assert "@import" not in css


def test_no_inline_style_that_the_policy_would_block(elements: Elements) -> None:
    assert not [tag for tag, attributes in elements.found if "style" in attributes]


def test_the_script_never_parses_text_as_markup() -> None:
    script = "".join(resources.files("headwater.report").joinpath("assets", name).read_text() for name in ("theme.js", "page.js"))
    for door in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "DOMParser",
        "createContextualFragment",
        "eval(",
        "new Function",
        "setTimeout",
    ):
        assert door not in script
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", script)


@pytest.mark.parametrize("text", [*HOSTILE, "&lt;", "]]>", "\\u003c", "é ü 漢字 🦆"])
def test_the_data_island_returns_what_went_in(text: str) -> None:
    written = json_island({text: [text, 1.5, None, True]})
    assert json.loads(written) == {text: [text, 1.5, None, True]}
    assert written.isascii()
    assert not set(written) & set("<>&")


def test_the_page_returns_its_data(page: str) -> None:
    assert island(page) == json.loads(json.dumps(explorer(parse_trace(sample_trace()))))


def test_markup_escapes_text_and_attributes() -> None:
    assert el("p", "<b> & 'c'", title='"><i>') == '<p title="&quot;&gt;&lt;i&gt;">&lt;b&gt; &amp; &#x27;c&#x27;</p>'
    assert foreign("a\u202eb") == '<bdi dir="auto">a<span class="hidden-char">U+202E</span>b</bdi>'


# ---------------------------------------------------------------------------------------------------- what it says


def visible(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(Elements(page).text))


def test_a_long_row_is_cut_and_says_how_long_it_is(page: str) -> None:
    long = [row for row in island(page)["rows"].values() if row["response"]["length"] == len(LONG)]
    assert len(long) == 1
    assert long[0]["response"]["text"] == LONG[:TEXT_LIMIT]
    assert len(page) < 400_000


def test_nan_scores_become_null() -> None:
    trace = sample_trace()
    trace["queries"][0]["ranked"]["grad_dot"]["proponents"][0].update(score=float("nan"), z=float("inf"))
    entry = island(render(trace))["queries"][0]["ranked"]["grad_dot"]["proponents"][0]
    assert entry["score"] is None
    assert entry["z"] is None


def test_header_names_what_the_trace_is_about(page: str) -> None:
    text = visible(page)
    for fact in (
        "headwater/tiny-llama-3M",
        "4f2c1d9",
        "1,000 (2 could not be scored)",
        "response log probability (nats)",
        "grad_cos",
        "2026-11-21 04:00:00 UTC",
        "0.1.0",
        "128",
    ):
        assert fact in text


def test_findings_stand_worst_first_with_a_word_each(page: str) -> None:
    names = [re.sub("<.*?>", "", name) for name in re.findall(r"<h3><bdi[^>]*>(.*?)</h3>", page)]
    assert names == ["sketch", "hubs", "convergence", "numerics", "removal"]
    assert re.findall(r'class="status status-(\w+)">.*?<span>([\w ]+)</span>', page) == [
        ("unknown", "verdict unknown"),
        ("fail", "fail"),
        ("warn", "warn"),
        ("unknown", "unknown"),
        ("ok", "ok"),
        ("ok", "ok"),
    ]
    assert "interval 0.31 to 0.49 · n = 64" in page


def test_without_findings_the_page_says_that_nothing_was_audited() -> None:
    trace = sample_trace()
    trace["experiment"] = None
    text = visible(render(trace))
    assert "Nothing was audited for this run" in text
    assert "verdict unknown" in text
    assert "The findings below" not in text


def test_the_static_summary_has_the_first_row_of_each_query(page: str) -> None:
    trace, text = sample_trace(), visible(page)
    for query in trace["queries"]:
        best = query["ranked"]["grad_cos"]["proponents"][0]
        assert query["prompt"] in text
        assert f"{best['score']:.3f} ± {best['standard_error']:.3f}" in text
    assert "<noscript>" in page


def test_a_trace_without_queries_or_experiment_still_makes_a_page() -> None:
    trace = sample_trace()
    trace.update(queries=[], experiment=None, rows={})
    assert "Queries at a glance" in render(trace)


# ------------------------------------------------------------------------------------------------------- run folder


def test_write_report_reads_every_artefact(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "my run")
    written = write_report(run)
    assert written == run / "report.html"
    text = visible(written.read_text(encoding="utf-8"))
    for fact in (
        "no response token",
        "bfloat16",
        "512",
        "65,792",
        "65,536 parameters are out of scope",
        "embed_tokens.weight",
        "Two sketch seeds share 4 of 10 rows",
        f"headwater replay '{run}'",
    ):
        assert fact in text
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_only_the_trace_is_needed(tmp_path: Path) -> None:
    trace = tmp_path / "scores" / "a" / "trace.json"
    trace.parent.mkdir(parents=True)
    trace.write_text(json.dumps(sample_trace()))
    text = visible(write_report(tmp_path, out=tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "There is no corpus report (corpus.json)" in text
    assert "There is no index/index.json and no run.json" in text


def test_the_newest_trace_is_shown_unless_one_is_named(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path)
    older = run / "scores" / "demo" / "trace.json"
    newer = run / "scores" / "another" / "trace.json"
    newer.parent.mkdir()
    newer.write_text(json.dumps({**sample_trace(), "model": "the-newer-one"}))
    os.utime(older, (1_000, 1_000))
    assert find_trace(run) == newer
    assert find_trace(run, "demo") == older
    assert "the-newer-one" in write_report(run).read_text(encoding="utf-8")
    assert "the-newer-one" not in write_report(run, trace="demo").read_text(encoding="utf-8")


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no trace .*headwater trace"):
        write_report(tmp_path)
    with pytest.raises(DataError, match=r"no trace named 'x'; it has \['demo'\]"):
        write_report(write_sample_run(tmp_path), trace="x")


def test_an_out_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        write_report(write_sample_run(tmp_path), out=tmp_path / "absent" / "report.html")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format: Input should be 1"),
        ({"queries": "none"}, "queries: Input should be a valid list"),
        ({"primary": "oracle"}, "primary method 'oracle' is not among the methods"),
        ({"rows": {}}, "which `rows` does not hold"),
        ({"methods": []}, "methods"),
        ({"n_train": "many", "n_bad": "few"}, r"n_train: .*\(and 1 more\)"),
    ],
)
def test_a_bad_trace_is_refused_by_field(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        render({**sample_trace(), **change})


def test_a_missing_field_is_named() -> None:
    trace = copy.deepcopy(sample_trace())
    del trace["queries"][1]["ranked"]["repsim"]["opponents"][0]["score"]
    with pytest.raises(DataError, match=r"queries\.1\.ranked\.repsim\.opponents\.0\.score: Field required"):
        render(trace)


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"format": 1, "quer', "is not JSON"), (b"[]", "holds a list"), (b"\xff\xfe", "is not UTF-8")]
)
def test_a_damaged_trace_leaves_the_old_page(tmp_path: Path, content: bytes, message: str) -> None:
    run = write_sample_run(tmp_path)
    before = write_report(run).read_bytes()
    (run / "scores" / "demo" / "trace.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        write_report(run)
    assert "trace.json" in str(caught.value)
    assert (run / "report.html").read_bytes() == before


def test_a_failed_write_leaves_the_old_page_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_sample_run(tmp_path)
    before = write_report(run).read_bytes()
    names = sorted(path.name for path in run.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert sorted(path.name for path in run.iterdir()) == names


@pytest.mark.parametrize("line", ['{"name": "a", "status": "splendid", "because": ""}', '{"name": "a"}', "not json"])
def test_a_bad_finding_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    run = write_sample_run(tmp_path)
    (run / "findings.jsonl").write_text(json.dumps(sample_findings()[0]) + f"\n\n{line}\n")
    with pytest.raises(DataError, match=r"findings\.jsonl:3 is not a finding"):
        write_report(run)
