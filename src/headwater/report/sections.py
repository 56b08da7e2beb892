"""The parts of the page that need no script: they are readable with scripts off, and in print."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from headwater.report.experiment import Effect, effects, sentence
from headwater.report.icons import status
from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import NONE, fixed, number, rate, with_unit
from headwater.report.schema import Entry, Experiment, Query, Removal, Row, Trace
from headwater.report.text import excerpt
from headwater.report.view import scale, scaled, score_heading
from headwater.types import Finding

WORST_FIRST = ("fail", "warn", "unknown", "ok")
LISTED_ROWS = 50
JSON_LIMIT = 40_000

Facts = Sequence[tuple[str, object]]


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.status))


def facts(pairs: Facts) -> Markup:
    """A definition list; a fact that is not known is left out."""
    known = [(name, value) for name, value in pairs if value not in (None, "")]
    return el("dl", *(el("div", el("dt", name), el("dd", value)) for name, value in known), class_="facts")


def section(id: str, title: str, *children: object, note: str | None = None) -> Markup:
    lead = el("p", note, class_="lead") if note else None
    return el("section", el("h2", title, id=f"{id}-title"), lead, *children, id=id, aria_labelledby=f"{id}-title")


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
        ("Traced", trace.created.replace("T", " ").replace("Z", " UTC")),
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


# -------------------------------------------------------------------------------------------------------- findings


def findings_section(findings: Sequence[Finding], *, audited: bool) -> Markup:
    verdict = el("p", status("unknown", word="verdict unknown"), " ", _verdict(audited), class_="verdict")
    items = el("ul", *(_finding(finding) for finding in worst_first(findings)), class_="findings") if findings else None
    return section("findings", "Can this be believed?", verdict, items)


def _verdict(audited: bool) -> str:
    tail = "A ranking is evidence, not proof; a verdict per query comes with a later version of Headwater."
    if audited:
        return f"The findings below are what was measured about this trace; what they leave out was not. {tail}"
    return f"Nothing was audited for this run: no findings file is there. {tail}"


def _finding(finding: Finding) -> Markup:
    return el(
        "li",
        el("div", el("h3", foreign(finding.name)), status(finding.status), class_="finding-head"),
        el("p", foreign(finding.because)),
        _value(finding),
        el("p", el("strong", "Next: "), foreign(finding.next_step), class_="next") if finding.next_step else None,
        class_=f"finding finding-{finding.status}",
    )


def _value(finding: Finding) -> Markup | None:
    parts = [f"value {with_unit(finding.value, finding.unit)}"] if finding.value is not None else []
    if finding.interval:
        parts.append(f"interval {number(finding.interval[0])} to {number(finding.interval[1])}")
    elif finding.value is not None:
        parts.append("no interval")
    parts += [f"n = {finding.n:,}"] if finding.n is not None else []
    return el("p", " · ".join(parts), class_="value") if parts else None


# ------------------------------------------------------------------------------------------------------ experiment


def experiment_section(experiment: Experiment) -> Markup:
    found = effects(experiment)
    unit = f" ({experiment.unit})" if experiment.unit else ""
    note = (
        f"The {experiment.removed} rows that {experiment.method} found were removed and the model was trained again; "
        f"and again with {experiment.removed} random rows removed. The measure{unit} of each query, before and after:"
    )
    return section(
        "experiment",
        experiment.title,
        _experiment_table(found, experiment),
        el("ul", *(_reading(effect, experiment) for effect in found), class_="readings"),
        _precision_table(experiment),
        el("p", foreign(experiment.note), class_="quiet") if experiment.note else None,
        note=note,
    )


def _experiment_table(found: Sequence[Effect], experiment: Experiment) -> Markup:
    span = _span(found)
    headings = ("Query", "Before", "After random removal", "After removal", "")
    head = el("tr", *(_heading(name, numeric=name not in ("Query", "")) for name in headings))
    legend = el(
        "p",
        *(el("span", el("i", class_=f"key key-{key}"), name) for key, name in _KEYS),
        class_="legend",
    )
    table = el("table", el("thead", head), el("tbody", *(_experiment_row(e, span) for e in found)), class_="experiment stack")
    axis = el("p", f"The axis of the charts runs from {number(span[0])} to {number(span[1])} {experiment.unit or ''}.", class_="quiet")
    return join(legend, table, axis)


_KEYS = (("before", "before"), ("random", "after random removal"), ("removal", "after removal of the found rows"))


def _experiment_row(effect: Effect, span: tuple[float, float]) -> Markup:
    query = effect.query
    numbers = (("Before", query.before), ("After random removal", query.after_random_removal), ("After removal", query.after_removal))
    return el(
        "tr",
        el("th", foreign(query.id), kind_badge(query.kind, unless=query.id), scope="row"),
        *(el("td", fixed(value), class_="number", data_label=name) for name, value in numbers),
        el("td", dot_chart(query.before, query.after_random_removal, query.after_removal, span=span), class_="chart"),
    )


def dot_chart(before: float | None, random: float | None, removal: float | None, *, span: tuple[float, float]) -> Markup:
    """Three marks on one line: a ring, a square and a filled dot. Positions are shares of the width, so it fits any screen."""
    at = {key: _share(value, span) for key, value in (("before", before), ("random", random), ("removal", removal)) if value is not None}
    label = f"before {fixed(before)}, after random removal {fixed(random)}, after removal {fixed(removal)}"
    marks = [el("line", x1="2%", x2="98%", y1="14", y2="14", class_="axis")]
    if "before" in at and "removal" in at:
        marks.append(el("line", x1=at["before"], x2=at["removal"], y1="14", y2="14", class_="fall"))
    marks += [_MARKS[key](at[key]) for key in at]
    return el("svg", *marks, role="img", aria_label=label, width="100%", height="28", class_="dots")


_MARKS = {
    "before": lambda x: el("circle", cx=x, cy="14", r="6", class_="dot-before"),
    "random": lambda x: el("svg", el("rect", x="-4", y="-4", width="8", height="8", class_="dot-random"), x=x, y="14", overflow="visible"),
    "removal": lambda x: el("circle", cx=x, cy="14", r="5.5", class_="dot-removal"),
}


def _span(found: Sequence[Effect]) -> tuple[float, float]:
    values = [v for e in found for v in (e.query.before, e.query.after_removal, e.query.after_random_removal) if v is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _share(value: float, span: tuple[float, float]) -> str:
    return f"{2 + 96 * (value - span[0]) / (span[1] - span[0]):.2f}%"


def _reading(effect: Effect, experiment: Experiment) -> Markup:
    return el("li", el("strong", foreign(effect.query.id), ": "), sentence(effect, experiment))


def _heading(name: str, *, numeric: bool = False) -> Markup:
    content = name or el("span", "Chart", class_="visually-hidden")
    return el("th", content, scope="col", class_="number" if numeric else None)


def _precision_table(experiment: Experiment) -> Markup | None:
    methods = list(dict.fromkeys(name for query in experiment.queries for name in query.precision_at_10))
    queries = [query for query in experiment.queries if query.precision_at_10]
    if not methods:
        return None
    head = el("tr", _heading("Query"), *(_heading(name, numeric=True) for name in methods))
    rows = [el("tr", el("th", foreign(query.id), scope="row"), *_precisions(query, methods)) for query in queries]
    title = el("h3", "Planted rows among each method's first ten")
    note = el("p", "Precision at 10: the share of the first ten rows that are planted.", class_="quiet")
    table = el("table", el("thead", head), el("tbody", *rows), class_="plain")
    return join(title, note, el("div", table, class_="scroll", tabindex="0", role="region", aria_label="Precision at 10"))


def _precisions(query: Removal, methods: Sequence[str]) -> Iterator[Markup]:
    return (el("td", fixed(query.precision_at_10.get(name)), class_="number") for name in methods)


# ------------------------------------------------------------------------------------------------ queries at a glance


def summary_section(trace: Trace) -> Markup:
    """Per query the first row of the primary method: the part of the answer that is there without a script."""
    first = [_first(query, trace) for query in trace.queries]
    axis = scale(entry for entry in first if entry)
    names = ("Query", "Prompt and response", _measure_heading(trace), "First row", score_heading(_primary_unit(trace), axis), "q")
    head = el("tr", *(_heading(name, numeric=position in (2, 4, 5)) for position, name in enumerate(names)))
    rows = [_summary_row(position, query, first[position], axis, trace) for position, query in enumerate(trace.queries)]
    table = el("table", el("thead", head), el("tbody", *rows), class_="summary stack")
    return section("summary", "Queries at a glance", table, note=f"The row that {trace.primary} puts first for each query.")


def _summary_row(position: int, query: Query, best: Entry | None, axis: Mapping[str, Any], trace: Trace) -> Markup:
    exchange = join(el("span", _cut(query.prompt, 120), class_="prompt"), " ", el("span", _cut(query.response, 80), class_="response"))
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
    return join(_cut(f"{row.prompt} → {row.response}", 130), el("span", _where(row.source, row.row), class_="source"))


def _primary_unit(trace: Trace) -> str | None:
    return trace.ordered_methods[0].unit


def _measure_heading(trace: Trace) -> str:
    return f"Measure, {trace.measure.unit}" if trace.measure.unit else "Measure"


def _cut(text: str, length: int) -> Markup:
    return foreign(excerpt(text, length))


def _where(source: str, row: int) -> Markup:
    return foreign(f"{source}:{row}" if row >= 0 else source)


def kind_badge(kind: str | None, *, unless: str = "") -> Markup | None:
    """What sort of query this is; left out where the id already says it."""
    return el("span", kind, class_=f"badge kind-{kind}", title=_KINDS.get(kind)) if kind and kind != unless else None


_KINDS = {
    "planted": "A small group of training rows was made to teach this behaviour.",
    "ordinary": "An ordinary question; its causes are not known beforehand.",
    "control": "Nothing in the training data causes this: a confident list here would be a false one.",
}


# ------------------------------------------------------------------------------------------------- corpus and index


def corpus_section(corpus: Mapping[str, Any] | None) -> Markup:
    if corpus is None:
        return section(
            "corpus", "Corpus", note="There is no corpus report (corpus.json): what was read, left out or duplicated is unknown."
        )
    own = {key: value for key, value in corpus.items() if not isinstance(value, (Mapping, list))}
    groups = [("rows", own), *((key, value) for key, value in corpus.items() if isinstance(value, Mapping))]
    tables = [table for name, values in groups if (table := _value_table(name, values))]
    note = "What was read, what was set aside and why, and what was found twice."
    return section("corpus", "Corpus", el("div", *tables, class_="tables"), *_listed(corpus), note=note)


def _value_table(name: str, values: Mapping[str, Any]) -> Markup | None:
    rows = [el("tr", el("th", label, scope="row"), el("td", _plain(value), class_="number")) for label, value in _scalars(values)]
    return el("table", el("caption", name.replace("_", " ")), el("tbody", *rows), class_="plain") if rows else None


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of every single value, at any depth; lists are shown elsewhere."""
    for key, value in values.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{name}: ")
        elif not isinstance(value, list):
            yield name, value


def _plain(value: Any) -> object:
    if value is None:
        return NONE
    if isinstance(value, (bool, str)):
        return foreign(excerpt(str(value), 200))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _listed(value: Mapping[str, Any], prefix: str = "") -> Iterator[Markup]:
    """Lists of the report (rows set aside, groups of duplicates), folded, and cut where they are long."""
    for key, items in value.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(items, Mapping):
            yield from _listed(items, f"{name}: ")
        elif isinstance(items, list) and items:
            yield _list(name, items)


def _list(name: str, items: Sequence[Any]) -> Markup:
    lines = [el("li", el("code", _cut(_one_line(item), 300))) for item in items[:LISTED_ROWS]]
    left = len(items) - len(lines)
    more = el("p", f"{left:,} more are in corpus.json.", class_="quiet") if left else None
    return el("details", el("summary", f"{name} ({len(items):,})"), el("ol", *lines), more)


def _one_line(item: Any) -> str:
    return item if isinstance(item, str) else json.dumps(item, ensure_ascii=False, default=str)


def index_section(index: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> Markup:
    if index is None and run is None:
        return section("index", "Index", note="There is no index/index.json and no run.json: how the rows were stored is unknown.")
    index, run = index or {}, run or {}
    dropped = find_key(run, "out_of_scope") or find_key(index, "out_of_scope")
    return section("index", "Index", facts(index_facts(index)), _out_of_scope(dropped), _raw("index.json", index), _raw("run.json", run))


def index_facts(index: Mapping[str, Any]) -> Facts:
    layout = find_key(index, "layout")
    blocks = layout.get("blocks", []) if isinstance(layout, Mapping) else []
    sketched = [block for block in blocks if block.get("shape") != block.get("stored")]
    return [
        ("Stored as", find_key(index, "dtype")),
        ("Numbers per row (D)", f"{sum(_size(block.get('stored', [])) for block in blocks):,}" if blocks else None),
        ("Parameters in scope", f"{sum(_size(block.get('shape', [])) for block in blocks):,}" if blocks else None),
        ("Blocks", f"{len(blocks):,}, of which {len(sketched):,} sketched" if blocks else None),
        ("Sketch seed", layout.get("sketch_seed") if isinstance(layout, Mapping) else None),
    ]


def find_key(value: Any, key: str) -> Any:
    """The first value stored under `key`, at any depth; None where there is none."""
    if not isinstance(value, Mapping):
        return None
    if key in value:
        return value[key]
    return next((found for item in value.values() if (found := find_key(item, key)) is not None), None)


def _size(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _out_of_scope(dropped: Any) -> Markup | None:
    if not dropped:
        return None
    pairs = dropped.items() if isinstance(dropped, Mapping) else ((_one_line(item), None) for item in dropped)
    lines = [el("li", el("code", foreign(str(name))), f": {_one_line(why)}" if why is not None else None) for name, why in pairs]
    counted = "1 parameter is" if len(lines) == 1 else f"{len(lines):,} parameters are"
    title = f"{counted} out of scope: the scores know nothing about changes there"
    return el("details", el("summary", title), el("ul", *lines))


def _raw(name: str, value: Mapping[str, Any]) -> Markup | None:
    if not value:
        return None
    written = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    cut = f"\n… {len(written) - JSON_LIMIT:,} more characters are in the file" if len(written) > JSON_LIMIT else ""
    return el("details", el("summary", name), el("pre", foreign(written[:JSON_LIMIT]), cut))


def reproduce_section(name: str) -> Markup:
    return section(
        "reproduce",
        "Reproduce",
        el("pre", el("code", f"headwater replay {shlex.quote(name)}"), class_="command"),
        note="The run folder holds every option and seed. This makes it again:",
    )
