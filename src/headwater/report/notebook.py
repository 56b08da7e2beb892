"""A small static table for `_repr_html_`: escaped, without a script, and readable on a notebook's own background."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import fixed, rate, with_unit
from headwater.report.schema import AuditRecord, Query, QueryVerdict, Row, Trace, parse_audit, parse_trace
from headwater.report.text import excerpt
from headwater.report.verdicts import MEANINGS, SIDES, probability, told
from headwater.report.view import fold, ranking, scaled, score_heading
from headwater.types import UsageError

_RIGHT = "text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap"
_LEFT = "text-align:left"


def notebook_html(
    trace: Mapping[str, Any] | Trace,
    *,
    query: int = 0,
    method: str | None = None,
    k: int = 10,
    audit: Mapping[str, Any] | AuditRecord | None = None,
    trace_name: str | None = None,
) -> str:
    """The verdict on one query, and its first `k` proponents by one method (default: the primary one), as HTML.

    `audit` and `trace_name` are as in `headwater.report.render`: a verdict is shown where the audit is of this trace, "unknown" where not.
    Raises DataError for a trace of the wrong shape, UsageError for a query or a method that it does not have.
    """
    checked = parse_trace(trace)
    asked, name = _query(checked, query), method or checked.primary
    if name not in asked.ranked:
        raise UsageError(f"got method {name!r}, but query {asked.id!r} has {sorted(asked.ranked)}; name one of these")
    title = el(
        "p", el("strong", foreign(asked.id)), f" {with_unit(asked.measure_value, checked.measure.unit)}; {len(checked.queries)} in all"
    )
    exchange = el("p", foreign(excerpt(asked.prompt, 300)), el("br"), el("strong", foreign(excerpt(asked.response, 300))))
    verdict = told(None if audit is None else parse_audit(audit), trace_name).of(asked.id)
    return str(el("div", title, exchange, _verdict(verdict), _table(asked, name, checked, k=k), class_="headwater"))


def _verdict(verdict: QueryVerdict) -> Markup:
    chance = "" if verdict.probability is None else f", {probability(verdict)}"
    reasons = [el("li", f"{SIDES[one.status]}: ", foreign(one.because)) for one in verdict.findings]
    word = el("p", el("strong", f"Verdict: {verdict.status}"), f"{chance}. {MEANINGS[verdict.status]}")
    return join(word, el("ul", *reasons) if reasons else None)


def _query(trace: Trace, position: int) -> Query:
    if not -len(trace.queries) <= position < len(trace.queries):
        raise UsageError(f"got query {position}, but the trace has {len(trace.queries)}, counted from 0")
    return trace.queries[position]


def _table(query: Query, method: str, trace: Trace, *, k: int) -> Markup:
    ranked, unit = query.ranked[method], {m.name: m.unit for m in trace.methods}.get(method)
    axis = ranking(ranked)["scale"]
    names = ("#", score_heading(unit, axis), "z", "q")
    head = el("tr", *(el("th", name, style=_RIGHT) for name in names), el("th", f"training row, by {method}", style=_LEFT))
    entries = fold(ranked.proponents)[:k]
    return el("table", el("thead", head), el("tbody", *(_line(entry, axis, trace.rows[entry["id"]]) for entry in entries)))


def _line(entry: Mapping[str, Any], axis: Mapping[str, Any], row: Row) -> Markup:
    error = "" if entry["standard_error"] is None else f" ± {scaled(entry['standard_error'], axis)}"
    numbers = (entry["rank"], f"{scaled(entry['score'], axis)}{error}", fixed(entry["z"]), rate(entry["q"]))
    text = join(
        foreign(excerpt(row.prompt, 120)), " → ", foreign(excerpt(row.response, 120)), " ", el("small", foreign(f"{row.source}:{row.row}"))
    )
    return el("tr", *(el("td", str(value), style=_RIGHT) for value in numbers), el("td", text, style=_LEFT))
