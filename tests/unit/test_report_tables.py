"""The terminal's tables and the notebook's: the same numbers as the page, and nothing in a row takes effect."""

# ruff: noqa: RUF001 the signs of the page are what is tested
from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from tests.report_sample import HOSTILE, sample_trace

from headwater.report.notebook import notebook_html
from headwater.report.terminal import summary
from headwater.types import DataError, UsageError


def printed(trace: dict, *, width: int = 140, k: int = 3) -> str:
    out = io.StringIO()
    summary(trace, Console(file=out, width=width, force_terminal=True, color_system=None), k=k)
    return out.getvalue()


def test_each_query_shows_the_first_rows_of_each_method() -> None:
    trace = sample_trace()
    text = printed(trace)
    for method in trace["methods"]:
        assert len(re.findall(rf"^{method['name']}", text, re.MULTILINE)) == 3
    best = trace["queries"][0]["ranked"]["grad_cos"]["proponents"][0]
    assert f"{best['score']:.3f} ± {best['standard_error']:.3f}" in text
    assert "grad_dot (10⁻⁶ nats)" in text
    assert "[planted] " in text
    assert "[hub] " in text


def test_the_experiment_is_told() -> None:
    text = re.sub(r"\s+", " ", printed(sample_trace()))
    assert "planted −3.10 −3.42 −24.61 1.00" in text
    assert "lowered the measure by 21.5 nats" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_scores_are_whole_at_any_width(width: int) -> None:
    trace = sample_trace()
    best = trace["queries"][2]["ranked"]["grad_cos"]["proponents"][0]
    assert f"{best['score']:.3f} ± {best['standard_error']:.3f}" in printed(trace, width=width, k=1)


@pytest.mark.parametrize("text", [*HOSTILE, "[bold red]x[/bold red] [/] [link=http://x]y[/link]", "\x1b]0;title\x07\x1b[2J", ":duck:"])
def test_nothing_in_a_row_reaches_the_terminal_as_control(text: str) -> None:
    trace = sample_trace()
    best = trace["queries"][0]["ranked"]["grad_cos"]["proponents"][0]["id"]
    trace["rows"][best].update(prompt=text, response="")
    trace["queries"][0].update(id=text, prompt=text)
    trace["experiment"].update(title=text, note=text)
    out = re.sub(r"\x1b\[[0-9;]*m", "", printed(trace))  # rich's own styles
    assert not re.search("[\0\x07\x1b\u202e\u2066\u200b\u2028]", out)
    assert "[bold red]" in out or "[bold red]" not in text
    assert "🦆" not in out


def test_the_notebook_table_is_escaped_and_has_k_rows() -> None:
    trace = sample_trace()
    html = notebook_html(trace, query=2, k=4)
    assert html.count("<tr>") == 5
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;" in html
    best = trace["queries"][2]["ranked"]["grad_cos"]["proponents"][0]
    assert f"{best['score']:.3f} ± {best['standard_error']:.3f}" in html


def test_the_notebook_table_of_another_method() -> None:
    assert "Score, 10⁻⁶ nats" in notebook_html(sample_trace(), method="grad_dot")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"got method 'oracle'.*grad_cos"):
        notebook_html(sample_trace(), method="oracle")
    with pytest.raises(UsageError, match="got query 3, but the trace has 3"):
        notebook_html(sample_trace(), query=3)
    with pytest.raises(DataError, match="model: Field required"):
        notebook_html({"format": 1})
    with pytest.raises(DataError):
        printed({"format": 1})
