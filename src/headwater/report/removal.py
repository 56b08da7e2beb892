"""The removal experiment as a section: numbers, a chart of one line per query, and what it means in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headwater.report.experiment import Effect, effects, sentence
from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import fixed, number
from headwater.report.parts import heading, kind_badge, section
from headwater.report.schema import Experiment, Removal


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
    head = el("tr", *(heading(name, numeric=name not in ("Query", "")) for name in headings))
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


def _precision_table(experiment: Experiment) -> Markup | None:
    methods = list(dict.fromkeys(name for query in experiment.queries for name in query.precision_at_10))
    queries = [query for query in experiment.queries if query.precision_at_10]
    if not methods:
        return None
    head = el("tr", heading("Query"), *(heading(name, numeric=True) for name in methods))
    rows = [el("tr", el("th", foreign(query.id), scope="row"), *_precisions(query, methods)) for query in queries]
    title = el("h3", "Planted rows among each method's first ten")
    note = el("p", "Precision at 10: the share of the first ten rows that are planted.", class_="quiet")
    table = el("table", el("thead", head), el("tbody", *rows), class_="plain")
    return join(title, note, el("div", table, class_="scroll", tabindex="0", role="region", aria_label="Precision at 10"))


def _precisions(query: Removal, methods: Sequence[str]) -> Iterator[Markup]:
    return (el("td", fixed(query.precision_at_10.get(name)), class_="number") for name in methods)
