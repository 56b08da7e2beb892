"""The page's answer as tables for a terminal: the same numbers, folds and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headwater.report.audited import value_text, worst_first
from headwater.report.experiment import effects, sentence
from headwater.report.numerals import NONE, fixed, number, rate, with_unit
from headwater.report.schema import AuditRecord, Experiment, MethodInfo, Query, QueryVerdict, Ranked, Row, Trace, parse_audit, parse_trace
from headwater.report.text import excerpt, legible
from headwater.report.verdicts import MARKS, MEANINGS, SIDES, calibration_sentence, next_steps, unknown_findings
from headwater.report.view import fold, overlap_sentence, ranking, scaled, score_heading, tops


def summary(trace: Mapping[str, Any] | Trace, console: Console, *, k: int = 3) -> None:
    """Print, per query, the first `k` rows of each method with scores and errors, and the removal experiment.

    Everything is printed as `rich.text.Text`: neither markup nor terminal escapes in a training row have an effect.
    Raises DataError where `trace` does not have its shape.
    """
    checked = parse_trace(trace)
    for query in checked.queries:
        _print_query(query, checked, console, k=k)
    if checked.experiment:
        _print_experiment(checked.experiment, console)


STYLES = {"fail": "bold red", "warn": "yellow", "unknown": "dim", "ok": "green"}


def audit_summary(audit: Mapping[str, Any] | AuditRecord, console: Console) -> None:
    """Print an audit: each query's verdict and what decided it, then the findings, worst first. Raises DataError as `summary` does."""
    checked = parse_audit(audit)
    if checked.verdicts:
        console.print(verdict_table(checked))
        if any(verdict.probability is not None for verdict in checked.verdicts):
            console.print(_text(calibration_sentence(checked.calibration), style="dim"))
        for step in next_steps(unknown_findings(checked.verdicts, checked.findings)):
            console.print(_text(f"To find out: {step}"))
        console.print()
    console.print(finding_table(checked))
    console.print(_text(_tally(checked), style="dim"))


def verdict_table(audit: AuditRecord) -> Table:
    """A line per query: the word, the probability, and the findings that decided it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("verdict", "p", "query", "because"):
        table.add_column(name, no_wrap=name in ("verdict", "p"), ratio=1 if name == "because" else None)
    for verdict in audit.verdicts:
        word = _text(verdict.status, style=STYLES[MARKS[verdict.status]])
        table.add_row(word, fixed(verdict.probability), _text(excerpt(verdict.query_id, 24)), _text(_because(verdict)))
    return table


def _because(verdict: QueryVerdict) -> str:
    return "; ".join(f"{SIDES[one.status]}: {one.because.rstrip('.')}" for one in verdict.findings) or MEANINGS[verdict.status]


def finding_table(audit: AuditRecord) -> Table:
    """Each finding with its value, interval and n, and what to do next; the worst first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("finding", "", "what was seen"):
        table.add_column(name, no_wrap=not name, ratio=1 if name.startswith("what") else None)
    for finding in worst_first(audit.findings):
        value, step = value_text(finding), finding.next_step
        lines = [finding.because, *([value] if value else []), *([f"-> {step}"] if step else [])]
        table.add_row(_text(finding.name), _text(finding.status, style=STYLES[finding.status]), _text("\n".join(lines)))
    return table


def _tally(audit: AuditRecord) -> str:
    found = [f"{n} {word}" for word in STYLES if (n := sum(one.status == word for one in audit.findings))]
    about = f"trace {audit.trace}: " if audit.trace else ""
    return f"{about}{', '.join(found) or 'no finding'}{'' if audit.total_s is None else f', {number(audit.total_s)} s'}"


def _print_query(query: Query, trace: Trace, console: Console, *, k: int) -> None:
    kind = f" ({query.kind})" if query.kind and query.kind != query.id else ""
    console.print()
    console.print(_text(f"{query.id}{kind}", style="bold"), _text(with_unit(query.measure_value, trace.measure.unit)))
    console.print(_text(excerpt(query.prompt, 200), style="dim"), _text(excerpt(query.response, 200)))
    console.print(query_table(query, trace, k=k))
    console.print(_text(overlap_sentence(tops(query, trace), trace.primary), style="dim"))


def query_table(query: Query, trace: Trace, *, k: int = 3) -> Table:
    """The first `k` rows of each method, the primary method first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    for name in ("method", "#", "score", "z", "q"):
        table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
    table.add_column("training row", ratio=1, no_wrap=True, overflow="ellipsis")
    for method in trace.ordered_methods:
        if method.name in query.ranked:
            _add_method(table, method, query.ranked[method.name], trace, k=k)
    return table


def _add_method(table: Table, method: MethodInfo, ranked: Ranked, trace: Trace, *, k: int) -> None:
    axis = ranking(ranked)["scale"]
    unit = score_heading(method.unit, axis).partition(", ")[2]
    for position, entry in enumerate(fold(ranked.proponents)[:k]):
        name = f"{method.name}{f' ({unit})' if unit else ''}" if position == 0 else ""
        error = "" if entry["standard_error"] is None else f" ± {scaled(entry['standard_error'], axis)}"
        numbers = (f"{scaled(entry['score'], axis)}{error}", fixed(entry["z"]), rate(entry["q"]))
        table.add_row(_text(name), str(entry["rank"]), *numbers, _row_text(trace.rows[entry["id"]], entry))


def _row_text(row: Row, entry: Mapping[str, Any]) -> Text:
    marks = [
        *(["planted"] if row.planted else []),
        *(["hub"] if entry["hub"] else []),
        *([f"+{len(entry['near'])} near"] if entry["near"] else []),
    ]
    line = Text.assemble(*((f"[{mark}] ", "bold") for mark in marks))
    return line + _text(f"{excerpt(row.prompt, 80)} → {excerpt(row.response, 80)}  {row.source}:{row.row}")


def _print_experiment(experiment: Experiment, console: Console) -> None:
    console.print()
    console.print(_text(experiment.title, style="bold"))
    console.print(experiment_table(experiment))
    for effect in effects(experiment):
        console.print(_text(f"{effect.query.id}: {sentence(effect, experiment)}"))
    if experiment.note:
        console.print(_text(experiment.note, style="dim"))


def experiment_table(experiment: Experiment) -> Table:
    """Per query the measure before, after random removal and after removal, in the experiment's unit."""
    unit = f", {experiment.unit}" if experiment.unit else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("query")
    for name in (f"before{unit}", "after random removal", "after removal", f"precision at 10, {experiment.method}"):
        table.add_column(_text(name), justify="right")
    for query in experiment.queries:
        precision = query.precision_at_10.get(experiment.method)
        numbers = (query.before, query.after_random_removal, query.after_removal)
        table.add_row(_text(query.id), *(fixed(value) for value in numbers), NONE if precision is None else fixed(precision))
    return table


def _text(value: str, *, style: str = "") -> Text:
    return Text(legible(value), style=style)
