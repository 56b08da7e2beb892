"""The header and the queries at a glance: readable with scripts off, and in print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import NONE, number, rate
from headwater.report.parts import Facts, cut, facts, heading, kind_badge, section, where
from headwater.report.schema import Entry, Query, Row, Trace
from headwater.report.view import scale, scaled, score_heading

# ---------------------------------------------------------------------------------------------------------- header


def header_facts(trace: Trace) -> Markup:
    bad = f" ({trace.n_bad:,} could not be scored)" if trace.n_bad else ""
    reference = None if trace.n_reference is None else f"{trace.n_reference:,}"
    pairs: Facts = [
        ("Model", foreign(trace.model)),
        ("Revision", foreign(trace.revision) if trace.revision else "not pinned"),
        ("Training rows", f"{trace.n_train:,}{bad}"),
        ("Queries", f"{len(trace.queries):,}"),
        ("Reference queries", reference),
        ("Measure", f"{trace.measure.name.replace('_', ' ')} ({trace.measure.unit or 'no unit'})"),
        ("Primary method", trace.primary),
        ("Traced", trace.created.replace("T", " ").replace("Z", " UTC").replace("+00:00", " UTC")),
        ("Headwater", trace.headwater),
    ]
    return facts(pairs)


def how_to_read(trace: Trace) -> Markup:
    unit = trace.measure.unit
    amount = f" (in {unit})" if unit else ""
    measure = trace.measure.name.replace("_", " ")
    return el(
        "p",
        join(
            el("strong", "How to read a score. "),
            f"It estimates how much the query's {measure} would change{amount} if the model were trained on that row once more. ",
            el("span", "Positive", class_="positive"),
            ": the row pushed the model towards this output (a proponent). ",
            el("span", "Negative", class_="negative"),
            ": away from it (an opponent). A method without a unit only ranks rows: its numbers cannot be compared with another method's.",
        ),
        class_="reading",
    )


# ------------------------------------------------------------------------------------------------ queries at a glance


def summary_section(trace: Trace) -> Markup:
    """Per query the first row of the primary method: the part of the answer that is there without a script."""
    first = [_first(query, trace) for query in trace.queries]
    axis = scale(entry for entry in first if entry)
    names = ("Query", "Prompt and response", _measure_heading(trace), "First row", score_heading(_primary_unit(trace), axis), "q")
    head = el("tr", *(heading(name, numeric=position in (2, 4, 5)) for position, name in enumerate(names)))
    rows = [_summary_row(position, query, first[position], axis, trace) for position, query in enumerate(trace.queries)]
    table = el("table", el("thead", head), el("tbody", *rows), class_="summary stack")
    return section("summary", "Queries at a glance", table, note=f"The row that {trace.primary} puts first for each query.")


def _summary_row(position: int, query: Query, best: Entry | None, axis: Mapping[str, Any], trace: Trace) -> Markup:
    exchange = join(el("span", cut(query.prompt, 120), class_="prompt"), " ", el("span", cut(query.response, 80), class_="response"))
    return el(
        "tr",
        el("th", el("a", foreign(query.id), href=f"#query-{position}"), kind_badge(query.kind, unless=query.id), scope="row"),
        el("td", exchange),
        el("td", number(query.measure_value), class_="number", data_label=_measure_heading(trace)),
        el("td", _found(trace.rows[best.id]) if best else NONE),
        el("td", score_text(best, axis) if best else NONE, class_="number", data_label=score_heading(_primary_unit(trace), axis)),
        el("td", rate(best.q if best else None), class_="number", data_label="q"),
    )


def score_text(entry: Entry, axis: Mapping[str, Any]) -> str:
    """Score ± standard error on the table's scale."""
    error = "" if entry.standard_error is None else f" ± {scaled(entry.standard_error, axis)}"
    return f"{scaled(entry.score, axis)}{error}"


def _first(query: Query, trace: Trace) -> Entry | None:
    ranked = query.ranked.get(trace.primary)
    return ranked.proponents[0] if ranked and ranked.proponents else None


def _found(row: Row) -> Markup:
    return join(cut(f"{row.prompt} → {row.response}", 130), el("span", where(row.source, row.row), class_="source"))


def _primary_unit(trace: Trace) -> str | None:
    return trace.ordered_methods[0].unit


def _measure_heading(trace: Trace) -> str:
    return f"Measure, {trace.measure.unit}" if trace.measure.unit else "Measure"
