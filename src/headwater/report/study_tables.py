"""The tables of a study: one number a cell with its interval and its seeds, a reason where there is none. Readable with scripts off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headwater.report.axes import Axis
from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import NONE, fixed, number
from headwater.report.parts import prose
from headwater.report.study_schema import SHARES, Chapter, Pooled

METRICS = {
    "accuracy": ("Accuracy", "Share of the queries whose first row is of their class."),
    "cover": ("Cover", "Share of the first c rows that are of the query's class, the mean over queries."),
    "auroc": ("AUROC", "Chance that a row of the query's class scores above one of another class; 0.5 is a random order."),
    "average_precision": ("Average precision", "Mean precision at the ranks of the rows of the query's class."),
    "hub_share": ("Hub share", "Largest share of the queries that have the same first row. Small is good."),
    "lds": ("LDS", "Correlation, over random halves of the rows, of the summed scores with the measure after training on the half."),
}
ORDER = tuple(METRICS)
STRIP, STRIP_HEIGHT = 46.0, 12.0  # study.css leaves as much room

Row = tuple[str, str]


@dataclass(frozen=True)
class Footnotes:
    """Reasons of empty cells, each with a letter, in the order in which they are first asked for."""

    id: str
    reasons: list[str]

    def mark(self, reason: str) -> Markup:
        if reason not in self.reasons:
            self.reasons.append(reason)
        at = self.reasons.index(reason)
        return el("sup", el("a", letter(at), href=f"#{self.id}-{at}"))

    def shown(self) -> Markup | None:
        notes = [
            el("li", el("b", letter(k)), " ", prose(reason), id=f"{self.id}-{k}") for k, reason in enumerate(self.reasons)
        ]  # fmt: skip
        return el("ul", *notes, class_="footnotes") if notes else None


def letter(at: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (letter(at // 26 - 1) if at >= 26 else "") + chr(ord("a") + at % 26)


# ------------------------------------------------------------------------------------------------------ one table


def cell_table(
    pooled: Sequence[Pooled], *, id: str, caption: str, first: str = "Method", metrics: Sequence[str] | None = None, strips: bool = False
) -> Markup | None:
    """A line for each method and variant, a column for each metric, the known ones first. None where there is no cell.

    `strips` draws each interval beside its number.
    """
    columns = list(metrics or ordered_metrics(one.metric for one in pooled))
    cells = {(one.method, one.variant, one.metric): one for one in pooled if one.metric in columns}
    rows = list(dict.fromkeys((method, variant) for method, variant, _ in cells))
    if not rows:
        return None
    notes = Footnotes(f"{id}-note", [])
    drawn = columns if strips else ()
    axes = {metric: strip_axis([one for one in cells.values() if one.metric == metric], metric) for metric in drawn}
    head = el("tr", el("th", first, scope="col"), *(_column(metric) for metric in columns))
    body = [_line(row, [cells.get((*row, metric)) for metric in columns], axes, columns, notes) for row in rows]
    table = el("table", el("caption", caption), el("thead", head), el("tbody", *body), class_="cells plain", data_sortable=True)
    return join(el("div", table, class_="scroll", tabindex="0", role="region", aria_label=caption), notes.shown())


def ordered_metrics(metrics: Iterable[str]) -> list[str]:
    there = list(dict.fromkeys(metrics))
    return [metric for metric in ORDER if metric in there] + [metric for metric in there if metric not in ORDER]


def metric_name(metric: str) -> str:
    known = METRICS.get(metric)
    return known[0] if known else capital(metric)


def capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _column(metric: str) -> Markup:
    return el("th", foreign(metric_name(metric)), scope="col", class_="number", title=METRICS[metric][1] if metric in METRICS else None)


def _line(row: Row, cells: Sequence[Pooled | None], axes: dict[str, Axis], metrics: Sequence[str], notes: Footnotes) -> Markup:
    return el(
        "tr", way_heading(*row), *(_cell(one, axes.get(metric), metric, notes) for one, metric in zip(cells, metrics, strict=True))
    )  # fmt: skip


def way_heading(method: str, variant: str) -> Markup:
    return el("th", foreign(method), el("span", foreign(variant), class_="variant") if variant else None, scope="row")


def _cell(one: Pooled | None, axis: Axis | None, metric: str, notes: Footnotes) -> Markup:
    """Without an axis nothing is drawn: folded tables are thousands of cells."""
    name = metric_name(metric)
    if one is None:
        return el("td", el("span", "not asked", class_="visually-hidden"), class_="number empty", data_label=name)
    if one.figure is None:
        return el("td", NONE, notes.mark(one.because), class_="number empty", data_label=name, title=one.because)
    note = notes.mark(one.because) if one.because else None
    return el(
        "td",
        el("span", written(one.figure.value, metric), note, axis and strip(one, axis), class_="value"),
        el("span", interval_text(one, metric), class_="interval"),
        class_="number",
        data_label=name,
        data_sort=f"{one.figure.value:.6g}",
        title=told(one),
    )


def written(value: float, metric: str) -> str:
    """Shares and correlations with two decimals, all else with three digits."""
    return fixed(value) if metric in SHARES or metric == "lds" else number(value)


def interval_text(one: Pooled, metric: str) -> str:
    """ "" for what was only counted or timed: there is no sample that it could vary with."""
    figure = one.figure
    if figure is None or figure.interval is None:
        return "no interval" if any(cell.n is not None for cell in one.measured) else ""
    return f"{written(figure.interval[0], metric)} to {written(figure.interval[1], metric)}"


def told(one: Pooled) -> str:
    """All of a cell in a line: for a pointer's tooltip and for who hears the page."""
    seeds = ", ".join(f"seed {cell.seed}: {number(cell.value)}" for cell in one.measured)
    counted = next((f"n = {cell.n:,} {cell.over}".rstrip() for cell in one.measured if cell.n is not None), "")
    unit = next((cell.unit for cell in one.measured if cell.unit), None)
    return "; ".join(filter(None, (f"in {unit}" if unit else "", interval_text(one, one.metric), seeds, counted)))


# ----------------------------------------------------------------------------------------------- interval and seeds


def strip_axis(pooled: Sequence[Pooled], metric: str) -> Axis:
    """One axis for a column, so that its strips can be compared: 0 to 1 for shares."""
    if metric in SHARES:
        return Axis(0.0, 1.0, 3, STRIP - 3)
    values = [value for one in pooled for value in _reach(one)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return Axis(low, high, 3, STRIP - 3) if low < high else Axis(low - 1, low + 1, 3, STRIP - 3)


def _reach(one: Pooled) -> list[float]:
    interval = one.figure.interval if one.figure and one.figure.interval else ()
    return [value for value in (*interval, one.value, *(cell.value for cell in one.measured)) if value is not None]


def strip(one: Pooled, axis: Axis) -> Markup | None:
    """The interval as a line, the mean as a tick, a dot for each seed where there are several."""
    if one.figure is None:
        return None
    middle, mean = STRIP_HEIGHT / 2, axis.at(one.figure.value)
    span = [axis.at(bound) for bound in one.figure.interval or ()]
    dots = [axis.at(cell.value) for cell in one.measured if cell.value is not None] if len(one.measured) > 1 else []
    return el(
        "svg",
        el("line", x1=f"{axis.start:g}", x2=f"{axis.end:g}", y1=f"{middle:g}", y2=f"{middle:g}", class_="axis"),
        el("line", x1=f"{span[0]:.1f}", x2=f"{span[1]:.1f}", y1=f"{middle:g}", y2=f"{middle:g}", class_="span") if span else None,
        el("line", x1=f"{mean:.1f}", x2=f"{mean:.1f}", y1="1", y2=f"{STRIP_HEIGHT - 1:g}", class_="mean"),
        *(el("circle", cx=f"{at:.1f}", cy=f"{middle:g}", r="2", class_="seed") for at in dots),
        viewBox=f"0 0 {STRIP:g} {STRIP_HEIGHT:g}", width=f"{STRIP:g}", height=f"{STRIP_HEIGHT:g}", aria_hidden="true", class_="strip",
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- methods


def methods_table(chapter: Chapter, *, id: str) -> Markup | None:
    """The class tables with the LDS of the ground truth beside them; what has an LDS alone stands below."""
    tables = chapter.part("tables")
    truth = chapter.find("truth", "lds")
    joined = [*tables, *(Pooled("tables", one.method, one.variant, "lds", one.cells) for one in truth)]
    return cell_table(joined, id=id, caption="Every method, by class and by cause", metrics=_columns(tables, truth), strips=True)


def _columns(tables: Sequence[Pooled], truth: Sequence[Pooled]) -> list[str]:
    """Paired differences are in the file; here they would double the columns."""
    plain = (one.metric for one in tables if " less " not in one.metric)
    return ordered_metrics([*plain, *(["lds"] if truth else [])])
