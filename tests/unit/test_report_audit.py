"""What the page, the terminal and the notebook say of an audit, and that a plot's points lie where its numbers say."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from tests.report_sample import (
    HOSTILE,
    control_plot,
    damping_plot,
    removal_plot,
    sample_audit,
    sample_calibration,
    sample_trace,
    write_sample_run,
)
from tests.unit.test_report_html import ALLOWED_TAGS, Elements, island, visible

from headwater.report import render, write_report
from headwater.report.axes import Axis, fit
from headwater.report.notebook import notebook_html
from headwater.report.plots import calibration_figure, figure, wilson
from headwater.report.schema import Calibration, PlotRecord, parse_audit
from headwater.report.terminal import audit_summary
from headwater.types import DataError


def page_of(audit: dict | None = None, **changes: object) -> str:
    given = sample_audit() if audit is None else audit
    return render(sample_trace(), audit=given, findings=given["findings"], **{"name": "run", "trace_name": "demo", **changes})


# ------------------------------------------------------------------------------------------------------- verdicts


def card_of(page: str, query: str) -> str:
    cards = re.findall(r'<li class="verdict-card.*?(?=<li class="verdict-card|<div class="to-do|$)', page, re.DOTALL)
    return next(card for card in cards if f">{query}</bdi>" in card)


def test_each_query_has_its_verdict_its_probability_and_what_decided_it() -> None:
    page = page_of()
    for query, word, mark, number, reason in (
        ("planted", "supported", "ok", "0.93", "11 times as far"),
        ("ordinary", "contradicted", "fail", "0.12", "BM25 finds"),
    ):
        card = card_of(page, query)
        assert f'<span class="status status-{mark}">' in card
        assert f"<span>{word}</span>" in card
        assert f"probability {number}" in card
        assert reason in card
    assert "3 queries: 1 supported 1 contradicted 1 unknown" in visible(page)


def test_unknown_is_shown_as_unknown_with_what_to_run() -> None:
    page = page_of()
    card = card_of(page, "control")
    assert "<span>unknown</span>" in card
    assert "probability" not in card
    assert "No check of an audit has measured" in card
    assert "To find out: Keep checkpoints while training." in visible(page)


def test_a_query_that_the_audit_does_not_mention_is_unknown() -> None:
    audit = sample_audit()
    del audit["verdicts"][0]
    assert "<span>unknown</span>" in card_of(page_of(audit), "planted")


def test_nothing_asks_for_more_where_nothing_is_unknown() -> None:
    audit = sample_audit()
    audit["verdicts"][2].update(status="weak", probability=0.5)
    assert "To find out" not in visible(page_of(audit))


def test_the_dot_of_a_probability_lies_between_the_places_where_its_word_changes() -> None:
    meter = re.search(r'<svg role="img" aria-label="probability 0.93.*?</svg>', page_of().replace("\n", " "))
    drawn = meter[0] if meter else re.findall(r"<svg[^>]*probability 0\.93.*?</svg>", page_of())[0]
    marks = [float(x) for x in re.findall(r'x1="([\d.]+)%"', drawn)]
    (dot,) = (float(x) for x in re.findall(r'cx="([\d.]+)%"', drawn))
    start, low, high = marks
    assert (dot - start) / (low - start) == pytest.approx(0.93 / 0.2, abs=0.01)
    assert low < high < dot < 98


def test_without_an_audit_the_verdict_is_unknown_and_the_command_is_named(tmp_path: Path) -> None:
    text = visible(write_report(write_sample_run(tmp_path / "my run")).read_text(encoding="utf-8"))
    assert "verdict unknown" in text
    assert f"Audit it: headwater audit '{tmp_path / 'my run'}'" in text


def test_a_trace_that_was_not_the_audited_one_says_so(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run", audit=sample_audit(trace="trace-of-yesterday"))
    page = write_report(run).read_text(encoding="utf-8")
    text = visible(page)
    assert "The audit in this folder is of another trace, trace-of-yesterday ; the trace on this page was not audited." in text
    assert f"headwater audit {run} --trace demo" in text
    assert "These are findings about another trace" in text
    assert "0.93" not in text
    assert {query["verdict"]["word"] for query in island(page)["queries"]} == {"unknown"}


def test_an_audit_of_the_index_alone_has_findings_and_no_verdict() -> None:
    page = page_of({**sample_audit(), "trace": None, "verdicts": []})
    assert "verdict unknown" in visible(page)
    assert "Two sketch seeds share" in page


def test_the_explorer_has_the_verdict_of_each_query() -> None:
    planted, _, control = (query["verdict"] for query in island(page_of())["queries"])
    assert (planted["mark"], planted["word"], planted["probability"]) == ("ok", "supported", "probability 0.93")
    assert [reason["mark"] for reason in planted["reasons"]] == ["ok"]
    assert (control["word"], control["probability"], control["reasons"]) == ("unknown", None, [])
    assert set(island(page_of())["marks"]) == {"ok", "warn", "fail", "unknown"}


def test_many_queries_are_folded_after_the_first() -> None:
    trace = sample_trace()
    trace["queries"] = [{**trace["queries"][0], "id": f"q{k}"} for k in range(20)]
    page = render(
        trace, audit={**sample_audit(), "verdicts": [{"query_id": "q19", "status": "weak", "probability": 0.4}]}, trace_name="demo"
    )
    assert "12 more queries" in page
    assert "probability 0.40" in card_of(page, "q19")


# ------------------------------------------------------------------------------------------------------- findings


def test_findings_of_one_check_stand_together_the_check_with_the_worst_first() -> None:
    findings = [
        {"name": "numerics: dtype", "status": "ok", "because": "a"},
        {"name": "hubs", "status": "warn", "because": "b"},
        {"name": "numerics: padding", "status": "fail", "because": "c", "value": 3.0, "unit": "nats", "interval": [2, 4], "n": 7},
    ]
    page = render(sample_trace() | {"experiment": None}, findings=findings)
    heads = re.findall(r"<h([34])><bdi[^>]*>([^<]*)</bdi></h\1>", page)
    assert heads == [("3", "numerics"), ("4", "padding"), ("4", "dtype"), ("3", "hubs")]
    assert "value 3 nats · interval 2 to 4 · n = 7" in page
    assert "3 findings, worst first: 1 failed, 1 to be read with care, 1 in order." in visible(page)


def test_a_value_that_is_no_number_is_left_out() -> None:
    finding = {"name": "a", "status": "unknown", "because": "b", "value": math.nan, "interval": [math.nan, math.inf], "n": 3}
    assert '<p class="value">n = 3</p>' in render(sample_trace(), findings=[finding])


def test_commands_between_backticks_are_code() -> None:
    finding = {"name": "a", "status": "unknown", "because": "one ` alone", "next_step": "Run `headwater index <RUN>` again."}
    page = render(sample_trace(), findings=[finding])
    assert "Run <code>headwater index &lt;RUN&gt;</code> again." in page
    assert "one ` alone" in page


# -------------------------------------------------------------------------------------------------- hostile, missing


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_every_text_of_an_audit_is_inert(text: str) -> None:
    trace, audit = sample_trace(), sample_audit()
    trace["queries"][0]["id"] = text
    finding = {"name": text, "status": "fail", "because": text, "unit": text, "value": 1.0, "next_step": text}
    audit["verdicts"][0].update(query_id=text, findings=[finding])
    audit.update(headwater=text, created=text, seconds={text: 1.0})
    audit["calibration"]["tasks"] = [text]
    for plot in audit["plots"]:
        plot.update(title=text, x=text, y=text, note=text)
        plot["series"][0]["name"] = text
    audit["plots"][2]["series"][0]["x"][0] = text
    audit["plots"].append({**removal_plot(), "series": [{"name": text, "x": [text, "b"], "y": [1.0, 2.0]}]})
    for trace_name in ("demo", text):
        page = render(trace, audit=audit, findings=[finding], trace_name=trace_name, name=text)
        found = Elements(page).found
        assert {tag for tag, _ in found} <= ALLOWED_TAGS
        assert [tag for tag, _ in found].count("script") == 2
        assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name == "style"]
        assert not re.search("[\0\x1b\u202a-\u202e\u2066-\u2069\u2028\u2029\u200b\ud800-\udfff\U000e0000-\U000e007f]", page)
        for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            assert "<span" not in drawing  # would end the drawing in a browser
    notebook = notebook_html(trace, audit=audit, trace_name="demo")
    assert {tag for tag, _ in Elements(notebook).found} <= {*ALLOWED_TAGS, "small"}
    out = printed(audit)
    assert not re.search("[\0\x07\x1b\u202e\u2066\u200b\u2028]", out)


def test_an_audit_may_lack_everything() -> None:
    page = page_of({"findings": []})
    assert "verdict unknown" in visible(page)
    assert 'id="plots"' not in page
    assert parse_audit({}).calibration is None


def test_without_a_calibration_the_page_says_that_none_is_on_record() -> None:
    assert "No record says what this probability was calibrated on" in page_of({**sample_audit(), "calibration": None})
    text = visible(page_of())
    assert "calibrated on 320 traced queries of planted, facts, classes and wikitext" in text
    assert "AUROC 0.90, expected calibration error 0.04" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdicts": [{"query_id": "a", "status": "certain"}]}, r"verdicts\.0\.status"),
        ({"plots": [{"title": "a", "series": [{"x": [1], "y": [1, 2]}]}]}, "of lengths"),
        ({"findings": [{"name": "a"}]}, r"findings\.0"),
    ],
)
def test_a_bad_audit_is_refused_by_field(tmp_path: Path, change: dict, message: str) -> None:
    run = write_sample_run(tmp_path, audit={**sample_audit(), **change})
    with pytest.raises(DataError, match=message) as caught:
        write_report(run)
    assert "audit.json" in str(caught.value)
    assert "headwater audit RUN" in str(caught.value)


def test_findings_are_the_audits_where_their_own_file_is_gone(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path, audit=sample_audit())
    (run / "findings.jsonl").unlink()
    assert "Two sketch seeds share 4 of 10 rows" in write_report(run).read_text(encoding="utf-8")


def test_a_nan_in_a_file_becomes_not_measured(tmp_path: Path) -> None:
    audit = sample_audit()
    audit["plots"][0]["series"][0]["y"][1] = math.nan
    audit["verdicts"][0]["probability"] = math.nan
    page = write_report(write_sample_run(tmp_path, audit=audit)).read_text(encoding="utf-8")
    assert "no probability" in card_of(page, "planted")
    assert "NaN" not in page


# ---------------------------------------------------------------------------------------------------------- plots


def drawing(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.findall(r"<svg role=.*?</svg>|<svg viewBox=\"0 0 440.*?</svg>", markup, re.DOTALL)[0])


def axis_of(svg: ElementTree.Element, kind: str, *, log: bool = False) -> tuple[float, float]:
    """Slope and offset of value -> pixel, by the first and the last tick; every other tick must lie on that line."""
    attribute = "y" if kind == "tick-y" else "x"
    ticks = [(float(t.attrib["data-value"]), float(t.attrib[attribute])) for t in svg.iter("text") if kind in t.attrib["class"].split()]
    places = [(math.log10(value) if log else value, at) for value, at in ticks]
    (a, at_a), (b, at_b) = places[0], places[-1]
    slope = (at_b - at_a) / (b - a)
    for value, at in places:
        assert at == pytest.approx(at_a + slope * (value - a), abs=0.02)
    return slope, at_a - slope * a


def marks_of(series: ElementTree.Element) -> list[tuple[float, float]]:
    moved = [one.attrib["transform"] for one in series.iter("path") if "transform" in one.attrib]
    return [tuple(map(float, re.findall(r"-?[\d.]+", text))) for text in moved]  # type: ignore[misc]


def series_of(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [group for group in svg.iter("g") if group.attrib["class"].startswith("series")]


@pytest.mark.parametrize("plot", [damping_plot(), removal_plot()], ids=["log", "linear"])
def test_points_lie_where_the_numbers_say(plot: dict) -> None:
    svg = drawing(figure(PlotRecord.model_validate(plot), id="p"))
    slope_x, offset_x = axis_of(svg, "tick-x", log=plot["log_x"])
    slope_y, offset_y = axis_of(svg, "tick-y")
    offset_y -= 4  # a label's baseline is below its tick
    assert slope_y < 0 < slope_x
    for series, drawn in zip(plot["series"], series_of(svg), strict=True):
        measured = [(x, y) for x, y in zip(series["x"], series["y"], strict=True) if y is not None]
        expected = [(offset_x + slope_x * (math.log10(x) if plot["log_x"] else x), offset_y + slope_y * y) for x, y in measured]
        assert marks_of(drawn) == [pytest.approx(point, abs=0.05) for point in expected]


def test_a_band_is_the_interval() -> None:
    plot = removal_plot()
    svg = drawing(figure(PlotRecord.model_validate(plot), id="p"))
    slope, offset = axis_of(svg, "tick-y")
    for series, drawn in zip(plot["series"], series_of(svg), strict=True):
        (band,) = drawn.iter("polygon")
        heights = [float(point.split(",")[1]) for point in band.attrib["points"].split()]
        expected = [offset - 4 + slope * y for y in (*series["low"], *reversed(series["high"]))]
        assert heights == pytest.approx(expected, abs=0.05)


def test_a_number_that_was_not_measured_is_a_gap() -> None:
    _, gradient = series_of(drawing(figure(PlotRecord.model_validate(damping_plot()), id="p")))
    assert len(marks_of(gradient)) == 3
    (line,) = gradient.iter("polyline")
    assert len(line.attrib["points"].split()) == 2


def test_bars_begin_at_zero_and_end_at_their_value_with_whiskers_at_the_interval() -> None:
    plot = control_plot()
    svg = drawing(figure(PlotRecord.model_validate(plot), id="p"))
    slope, offset = axis_of(svg, "tick-x")
    (bars,) = series_of(svg)
    series = plot["series"][0]
    for k, (bar, whisker) in enumerate(zip(bars.iter("rect"), bars.iter("path"), strict=True)):
        left, width = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert sorted([offset, offset + slope * series["y"][k]]) == pytest.approx([left, left + width], abs=0.05)
        low, high = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", whisker.attrib["d"])[0]
        assert [float(low), float(high)] == pytest.approx([offset + slope * series[side][k] for side in ("low", "high")], abs=0.05)
    tops = [float(bar.attrib["y"]) for bar in bars.iter("rect")]
    assert tops == sorted(tops)


def test_names_on_the_x_axis_of_lines_are_evenly_spaced_in_their_order() -> None:
    series = [{"name": "a", "x": ["step 10", "step 20", "final"], "y": [0.1, 0.5, 1.0]}]
    svg = drawing(figure(PlotRecord.model_validate({**removal_plot(), "series": series}), id="p"))
    labels = [text.text for text in svg.iter("text") if "tick-x" in text.attrib["class"]]
    assert labels == ["step 10", "step 20", "final"]
    (first, _), (second, _), (third, _) = marks_of(series_of(svg)[0])
    assert second - first == pytest.approx(third - second, abs=0.02)


def test_what_cannot_stand_on_a_logarithmic_axis_is_not_drawn_but_in_the_table() -> None:
    series = [{"name": "a", "x": [0.0, 0.1, 1.0], "y": [0.7, 0.5, 1.0]}]
    markup = figure(PlotRecord.model_validate({**damping_plot(), "series": series}), id="p")
    assert len(marks_of(series_of(drawing(markup))[0])) == 2
    assert "0.7" in re.findall(r"<table.*</table>", markup, re.DOTALL)[0]


@pytest.mark.parametrize("y", [[], [None, None]])
@pytest.mark.parametrize("kind", ["line", "bar"])
def test_a_plot_without_numbers_says_so(kind: str, y: list) -> None:
    plot = {"title": "Empty", "kind": kind, "series": [{"name": "a", "x": list(range(len(y))), "y": y}]}
    markup = figure(PlotRecord.model_validate(plot), id="p")
    assert "no number of this plot was measured" in markup
    assert "<svg" not in markup


def test_one_point_and_equal_points_are_drawn() -> None:
    for y in ([2.0], [0.0, 0.0], [-3.0, -3.0]):
        plot = {"title": "Flat", "series": [{"name": "a", "x": list(range(1, len(y) + 1)), "y": y}]}
        svg = drawing(figure(PlotRecord.model_validate(plot), id="p"))
        assert len(marks_of(series_of(svg)[0])) == len(y)
        assert all(30 <= at <= 220 for _, at in marks_of(series_of(svg)[0]))


def test_a_plot_is_told_to_those_who_cannot_see_it() -> None:
    markup = figure(PlotRecord.model_validate(damping_plot()), id="p-0")
    svg = drawing(markup)
    assert svg.attrib["aria-labelledby"] == "p-0-title"
    told = {one.attrib.get("id"): one.text or "" for one in svg}
    assert told["p-0-title"] == "What damping costs"
    assert "EK-FAC: from 0.21 at 1 × 10⁻⁶ to 0.83 at 0.01." in told["p-0-desc"]  # noqa: RUF001
    assert "The same as a table" in markup


def test_calibration_dots_lie_at_predicted_and_observed() -> None:
    record = Calibration.model_validate({**sample_calibration(), "bins": [*sample_calibration()["bins"], {"low": 0.8, "n": 0}]})
    svg = drawing(calibration_figure(record, id="c") or "")
    slope_x, offset_x = axis_of(svg, "tick-x")
    slope_y, offset_y = axis_of(svg, "tick-y")
    dots = [point for group in series_of(svg) for point in marks_of(group)]
    bins = sample_calibration()["bins"]
    expected = [(offset_x + slope_x * one["mean"], offset_y - 4 + slope_y * one["observed"]) for one in bins]
    assert dots == [pytest.approx(point, abs=0.05) for point in expected]
    assert calibration_figure(Calibration(), id="c") is None


def test_wilson_against_a_binomial_of_the_textbook() -> None:
    from scipy.stats import binomtest

    for k, n in ((0, 10), (3, 10), (80, 80)):
        expected = binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-4)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-7.3, 12.9), (1e-7, 3e-7), (-2e6, -1e6), (0.5, 0.50001)])
def test_linear_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = Axis(low, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 7
    assert all(low - 1e-9 * abs(low) <= value <= high + 1e-9 * abs(high) for value, _ in ticks)
    assert len({written for _, written in ticks}) == len(ticks) or high - low < 1e-4


@pytest.mark.parametrize(("low", "high"), [(1e-8, 1.0), (0.02, 0.3), (1.0, 1e12)])
def test_logarithmic_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = fit([low, high], 0, 100, log=True, pad=0.0).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low * 0.99 <= value <= high * 1.01 for value, _ in ticks)


# -------------------------------------------------------------------------------------------- terminal and notebook


def printed(audit: dict, width: int = 120) -> str:
    out = io.StringIO()
    audit_summary(audit, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def test_the_terminal_tells_verdicts_first_then_findings_worst_first() -> None:
    out = printed(sample_audit())
    lines = [line.split() for line in out.splitlines() if line.strip()]
    words = [line[0] for line in lines]
    assert [words.index(word) for word in ("supported", "contradicted", "unknown", "sketch", "hubs", "convergence", "numerics")] == sorted(
        words.index(word) for word in ("supported", "contradicted", "unknown", "sketch", "hubs", "convergence", "numerics")
    )
    assert "0.93" in lines[words.index("supported")]
    text = re.sub(r"\s+", " ", out)
    assert "11 times as far" in text
    assert "value 0.4 · interval 0.31 to 0.49 · n = 64" in text
    assert "-> Index again with a larger sketch." in text
    assert "To find out: Keep checkpoints while training." in text
    assert "trace demo: 1 fail, 1 warn, 1 unknown, 1 ok, 34.2 s" in text


def test_the_terminal_of_a_check_without_trace_has_findings_only() -> None:
    out = printed({"findings": sample_audit()["findings"]})
    assert "verdict" not in out
    assert "sketch" in out


def test_the_notebook_shows_the_verdict_of_its_query() -> None:
    shown = notebook_html(sample_trace(), query=0, audit=sample_audit(), trace_name="demo")
    assert "Verdict: supported" in shown
    assert "probability 0.93" in shown
    assert "11 times as far" in shown
    assert "Verdict: unknown" in notebook_html(sample_trace(), query=2, audit=sample_audit(), trace_name="demo")
    assert "Verdict: unknown" in notebook_html(sample_trace(), query=0, audit=sample_audit(), trace_name="another")
    assert "Verdict: unknown" in notebook_html(sample_trace(), query=0)


def test_the_record_of_a_run_survives_json() -> None:
    audit = json.loads(json.dumps(sample_audit()))
    assert parse_audit(audit).model_dump(exclude={"findings", "verdicts"}) == parse_audit(sample_audit()).model_dump(
        exclude={"findings", "verdicts"}
    )
