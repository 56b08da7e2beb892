"""Plots of an audit as inline SVG: lines with bands, bars with whiskers, and calibration. No script; colours are the page's variables.

A chart is drawn in a box of `WIDTH` units and scales with its column. Each has a title, a description, and the same numbers as a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from headwater.report.axes import Axis, fit
from headwater.report.markup import Markup, el, foreign, join
from headwater.report.numerals import NONE, fixed, number
from headwater.report.parts import prose
from headwater.report.schema import Bin, Calibration, PlotRecord, PlotSeries
from headwater.report.text import excerpt, legible
from headwater.types import CONTRADICTED, SUPPORTED

WIDTH, HEIGHT = 440.0, 264.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 428.0, 30.0, 220.0
STYLES = 6  # series look different up to here, then again from the first
MARKED_POINTS = 40  # of a line; a longer one has no marks
LISTED_BARS = 24
LISTED_ROWS = 100
NAME_LENGTH, NAME_WIDTH = 20, 150.0
BAR, BAR_GAP, GROUP_GAP = 11.0, 2.0, 9.0

X = float | str


@dataclass(frozen=True)
class Point:
    """One number of a series that was measured, with its interval where there is one."""

    x: X
    at: float  # on the x axis: itself, or the place of a name
    y: float
    low: float | None
    high: float | None

    @property
    def span(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def figure(plot: PlotRecord, *, id: str) -> Markup:
    """Title, drawing, legend, note and table of one plot. `id` begins the ids inside it."""
    drawn = _bars(plot, id) if plot.kind == "bar" else _lines(plot, id)
    return el(
        "figure",
        el("h3", foreign(plot.title)),
        drawn or el("p", "Nothing to draw: no number of this plot was measured.", class_="quiet"),
        _legend(plot) if drawn else None,
        el("p", prose(plot.note), class_="quiet") if plot.note else None,
        _table(plot) if drawn else None,
        class_="plot",
    )


def drawing(id: str, height: float, title: str, description: str, *children: object, width: float = WIDTH) -> Markup:
    names = (tooltip(title, id=f"{id}-title"), el("desc", legible(description), id=f"{id}-desc"))
    box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria_labelledby": f"{id}-title", "aria_describedby": f"{id}-desc"}
    return el("svg", *names, *children, **box)


def lettering(content: str, *, told: str | None = None, **attributes: object) -> Markup:
    """Hidden characters become plain text here: the mark that stands for them elsewhere would end an SVG."""
    return el("text", legible(content), tooltip(told) if told else None, **attributes)


def shortened(content: str, length: int) -> str:
    return excerpt(legible(content), length)


def tooltip(content: str, **attributes: object) -> Markup:
    return el("title", legible(content), **attributes)


# ----------------------------------------------------------------------------------------------------------- lines


def _lines(plot: PlotRecord, id: str) -> Markup | None:
    names = _names(plot)
    series = [_points(one, names, log_x=plot.log_x) for one in plot.series]
    points = [point for line in series for point in line if point is not None]
    if not points:
        return None
    x = fit([point.at for point in points], LEFT, RIGHT, log=plot.log_x and not names)
    y = fit(_reach(points), BOTTOM, TOP, zero=True, pad=0.06)
    ticks = _name_ticks(names) if names else x.ticks()
    marks = [_line(line, x, y, number_of, plot.series[number_of].name) for number_of, line in enumerate(series)]
    return drawing(id, HEIGHT, plot.title, _description(plot, series), *draw_frame(x, y, ticks, plot.x, plot.y), *marks)


def _names(plot: PlotRecord) -> list[str]:
    """The names on the x axis in their order; none where it is numbers."""
    given = [x for series in plot.series for x in series.x]
    return list(dict.fromkeys(map(_name, given))) if any(isinstance(x, str) for x in given) else []


def _name(x: X) -> str:
    return x if isinstance(x, str) else number(x)


def _points(series: PlotSeries, names: Sequence[str], *, log_x: bool) -> list[Point | None]:
    """None where a number was not measured, or cannot stand on the axis."""
    none: list[float | None] = [None] * len(series.x)
    at: list[float | None] = [float(names.index(_name(x))) if names else _place(x, log_x=log_x) for x in series.x]
    rows = zip(series.x, at, series.y, series.low or none, series.high or none, strict=True)
    return [None if place is None or y is None else Point(x, place, y, low, high) for x, place, y, low, high in rows]


def _place(x: X, *, log_x: bool) -> float | None:
    good = not isinstance(x, str) and math.isfinite(x) and (x > 0 or not log_x)
    return float(x) if good else None


def _reach(points: Sequence[Point]) -> list[float]:
    return [value for point in points for value in (point.y, *(point.span or ()))]


def _name_ticks(names: Sequence[str]) -> list[tuple[float, str]]:
    every = math.ceil(len(names) / 6)
    return [(float(k), shortened(name, 12)) for k, name in enumerate(names) if k % every == 0]


def draw_frame(x: Axis, y: Axis, ticks: Sequence[tuple[float, str]], x_label: str, y_label: str) -> Iterator[Markup]:
    for value, written in y.ticks():
        yield el("line", x1=px(x.start), x2=px(x.end), y1=px(y.at(value)), y2=px(y.at(value)), class_="zero" if value == 0 else "grid")
        yield lettering(written, x=px(x.start - 7), y=px(y.at(value) + 4), text_anchor="end", class_="tick tick-y", data_value=value)
    for value, written in ticks:
        yield el("line", x1=px(x.at(value)), x2=px(x.at(value)), y1=px(y.start), y2=px(y.start + 4), class_="tick-mark")
        yield lettering(written, x=px(x.at(value)), y=px(y.start + 18), text_anchor="middle", class_="tick tick-x", data_value=value)
    yield el("line", x1=px(x.start), x2=px(x.end), y1=px(y.start), y2=px(y.start), class_="frame")
    yield lettering(shortened(y_label, 56), x=px(4), y=px(14), class_="label")
    yield lettering(shortened(x_label, 56), x=px((x.start + x.end) / 2), y=px(y.start + 38), text_anchor="middle", class_="label")


def _line(points: Sequence[Point | None], x: Axis, y: Axis, number_of: int, name: str) -> Markup:
    runs = [[point for point in run if point is not None] for there, run in groupby(points, lambda p: p is not None) if there]
    whole = [el("polyline", points=_path([(x.at(p.at), y.at(p.y)) for p in run]), class_="line") for run in runs if len(run) > 1]
    few = sum(map(len, runs)) <= MARKED_POINTS
    lone = [point for run in runs for point in run if few or len(run) == 1]
    return el(
        "g",
        *(_band(run, x, y) for run in runs if len(run) > 1),
        *whole,
        *(draw_whisker(x.at(p.at), y.at(p.span[0]), y.at(p.span[1])) for run in runs if len(run) == 1 for p in run if p.span),
        *(draw_mark(x.at(p.at), y.at(p.y), number_of, _told(name, p)) for p in lone),
        class_=f"series series-{number_of % STYLES}",
    )


def _band(run: Sequence[Point], x: Axis, y: Axis) -> Markup | None:
    spans = [(x.at(point.at), point.span) for point in run if point.span]
    there = [(at, y.at(span[0]), y.at(span[1])) for at, span in spans if span]
    outline = [(at, low) for at, low, _ in there] + [(at, high) for at, _, high in reversed(there)]
    return el("polygon", points=_path(outline), class_="band") if len(there) > 1 else None


def draw_whisker(at: float, low: float, high: float) -> Markup:
    return el("path", d=f"M{px(at)} {px(low)}V{px(high)}M{px(at - 4)} {px(low)}h8M{px(at - 4)} {px(high)}h8", class_="whisker")


SHAPES = (  # of 6 to 7 units around the origin: differ without colour
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0",
    "M-3 -3h6v6h-6z",
    "M0 -3.8l3.7 6.4h-7.4z",
    "M0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
    "M-3.4 -3.4l6.8 6.8M3.4 -3.4l-6.8 6.8",
    "M0 3.8l3.7 -6.4h-7.4z",
)


def draw_mark(x: float, y: float, number_of: int, told: str) -> Markup:
    return el("path", tooltip(told), d=SHAPES[number_of % STYLES], transform=f"translate({px(x)} {px(y)})", class_="mark")


def _told(name: str, point: Point) -> str:
    span = f" ({number(point.span[0])} to {number(point.span[1])})" if point.span else ""
    return f"{name + ': ' if name else ''}{_name(point.x)}: {number(point.y)}{span}"


# ------------------------------------------------------------------------------------------------------------ bars


def _bars(plot: PlotRecord, id: str) -> Markup | None:
    """Horizontal, so that names can be read; the bars of a name stand together."""
    names = list(dict.fromkeys(_name(x) for series in plot.series for x in series.x))
    series = [[p and _at_name(p, names) for p in _points(one, names, log_x=False)] for one in plot.series]
    points = [point for line in series for point in line if point is not None and point.at < LISTED_BARS]
    if not points:
        return None
    shown = names[:LISTED_BARS]
    group = len(series) * (BAR + BAR_GAP) - BAR_GAP + GROUP_GAP
    bottom = TOP + GROUP_GAP / 2 + len(shown) * group
    value = fit([0.0, *_reach(points)], NAME_WIDTH + 8, RIGHT - 58, pad=0.0)
    left_out = f"{len(names) - len(shown)} more are in audit.json." if len(names) > len(shown) else ""
    children = [
        *_bar_frame(value, shown, group, bottom, plot),
        *(_bar_series(line, value, k, group, plot.series[k].name) for k, line in enumerate(series)),
        lettering(left_out, x=px(4), y=px(bottom + 38), class_="label") if left_out else None,
    ]
    return drawing(id, bottom + (44 if left_out else 22), plot.title, _description(plot, series), *children)


def _at_name(point: Point, names: Sequence[str]) -> Point:
    return Point(point.x, float(names.index(_name(point.x))), point.y, point.low, point.high)


def _bar_frame(value: Axis, names: Sequence[str], group: float, bottom: float, plot: PlotRecord) -> Iterator[Markup]:
    for tick, written in value.ticks():
        yield el("line", x1=px(value.at(tick)), x2=px(value.at(tick)), y1=px(TOP), y2=px(bottom), class_="zero" if tick == 0 else "grid")
        yield lettering(written, x=px(value.at(tick)), y=px(bottom + 16), text_anchor="middle", class_="tick tick-x", data_value=tick)
    for k, name in enumerate(names):
        yield lettering(
            shortened(name, NAME_LENGTH),
            told=name,
            x=px(NAME_WIDTH),
            y=px(TOP + GROUP_GAP / 2 + (k + 0.5) * group),
            text_anchor="end",
            class_="tick name",
        )
    yield lettering(shortened(plot.x, 24), x=px(NAME_WIDTH), y=px(18), text_anchor="end", class_="label")
    yield lettering(shortened(plot.y, 42), x=px(NAME_WIDTH + 8), y=px(18), class_="label")


def _bar_series(points: Sequence[Point | None], value: Axis, number_of: int, group: float, name: str) -> Markup:
    drawn = [_bar(point, value, number_of, group, name) for point in points if point is not None and point.at < LISTED_BARS]
    return el("g", *drawn, class_=f"series series-{number_of % STYLES}")


def _bar(point: Point, value: Axis, number_of: int, group: float, name: str) -> Markup:
    top = TOP + GROUP_GAP + point.at * group + number_of * (BAR + BAR_GAP)
    left, right = sorted((value.at(0.0), value.at(point.y)))
    end = max(value.at(v) for v in (0.0, point.y, *(point.span or ())))
    middle = top + BAR / 2
    whisker = None
    if point.span:
        low, high = (px(value.at(bound)) for bound in point.span)
        stop = f"{px(middle - 3)}v6"
        whisker = el("path", d=f"M{low} {px(middle)}H{high}M{low} {stop}M{high} {stop}", class_="whisker")
    return join(
        el("rect", tooltip(_told(name, point)), x=px(left), y=px(top), width=px(right - left), height=px(BAR), class_="bar"),
        whisker,
        lettering(number(point.y, digits=2), x=px(end + 5), y=px(middle + 4), class_="tick value"),
    )


# ------------------------------------------------------------------------------------------------------ in words


def _legend(plot: PlotRecord) -> Markup | None:
    spans = any(series.low for series in plot.series)
    interval = el("span", f"{'Whiskers' if plot.kind == 'bar' else 'Bands'} are intervals.") if spans else None
    keys = [_key(k, series.name, plot.kind) for k, series in enumerate(plot.series)] if len(plot.series) > 1 else []
    return el("p", *keys, interval, class_="legend plot-legend") if keys or interval else None


def _key(number_of: int, name: str, kind: str) -> Markup:
    line = el("path", d="M1 6h20", class_="line")
    mark = el("path", d=SHAPES[number_of % STYLES], transform="translate(11 6)", class_="mark")
    shapes = [el("rect", x="5", y="1", width="11", height="10", class_="bar")] if kind == "bar" else [line, mark]
    drawn = el("svg", *shapes, viewBox="0 0 22 12", width="22", height="12", aria_hidden="true", class_=f"series-{number_of % STYLES}")
    return el("span", drawn, " ", foreign(name), class_="plot-key")


def _description(plot: PlotRecord, series: Sequence[Sequence[Point | None]]) -> str:
    told = [_course(plot.series[k].name, [p for p in line if p is not None]) for k, line in enumerate(series)]
    axes = f"{'Bars' if plot.kind == 'bar' else 'Lines'} of {plot.y or 'a number'} by {plot.x or 'name'}."
    return " ".join([axes, *told])


def _course(name: str, points: Sequence[Point]) -> str:
    if not points:
        return f"{name or 'The series'}: not measured."
    low, high = min(points, key=lambda p: p.y), max(points, key=lambda p: p.y)
    told = f"from {number(low.y)} at {_name(low.x)} to {number(high.y)} at {_name(high.x)}" if low.y < high.y else number(low.y)
    return f"{name or 'The series'}: {told}."


def _table(plot: PlotRecord) -> Markup:
    cells = {_name(x): {} for series in plot.series for x in series.x}
    for k, series in enumerate(plot.series):
        none: list[float | None] = [None] * len(series.x)
        for x, y, low, high in zip(series.x, series.y, series.low or none, series.high or none, strict=True):
            span = f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""
            cells[_name(x)][k] = f"{number(y)}{span}"
    names = [series.name or plot.y for series in plot.series]
    head = el("tr", el("th", foreign(plot.x or "name"), scope="col"), *(el("th", foreign(n), scope="col", class_="number") for n in names))
    rows = [_table_row(x, cells[x], len(names)) for x in list(cells)[:LISTED_ROWS]]
    table = el("div", el("table", el("thead", head), el("tbody", *rows), class_="plain"), class_="scroll")
    return el("details", el("summary", "The same as a table"), table, class_="print-hide")


def _table_row(x: str, cells: dict[int, str], count: int) -> Markup:
    return el("tr", el("th", foreign(x), scope="row"), *(el("td", cells.get(k, NONE), class_="number") for k in range(count)))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{px(x)},{px(y)}" for x, y in points)


def px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ------------------------------------------------------------------------------------------------------ calibration


def calibration_figure(calibration: Calibration, *, id: str) -> Markup | None:
    """Mean probability against the observed share, for each bin with its n and a 95 % interval (Wilson); None where no bin has any."""
    bins = [one for one in calibration.bins if one.n > 0 and one.mean is not None and one.observed is not None]
    if not bins:
        return None
    x, y = Axis(0.0, 1.0, LEFT, RIGHT), Axis(0.0, 1.0, BOTTOM, TOP)
    told = " ".join(f"Predicted {fixed(one.mean)}, observed {fixed(one.observed)}, n = {one.n}." for one in bins)
    children = [
        *draw_frame(x, y, x.ticks(), "probability that the verdict gave", "share of queries whose rows proved to be the cause"),
        el("line", x1=px(x.at(0)), y1=px(y.at(0)), x2=px(x.at(1)), y2=px(y.at(1)), class_="ideal"),
        *(_threshold(x.at(value)) for value in (CONTRADICTED, SUPPORTED)),
        *(_bin(one, x, y) for one in bins),
    ]
    note = "On the diagonal the probability is right. Dotted: where a verdict is contradicted (left), weak, supported (right)."
    drawn = drawing(id, HEIGHT, "Calibration of the probability", told, *children)
    return el("figure", el("h3", "Calibration of the probability"), drawn, el("p", note, class_="quiet"), class_="plot")


def _threshold(at: float) -> Markup:
    return el("line", x1=px(at), x2=px(at), y1=px(TOP), y2=px(BOTTOM), class_="threshold")


def _bin(one: Bin, x: Axis, y: Axis) -> Markup:
    mean, observed = one.mean or 0.0, one.observed or 0.0
    low, high = wilson(observed, one.n)
    at, middle = x.at(mean), y.at(observed)
    label = lettering(f"n = {one.n:,}", x=px(at + 8), y=px(middle + 4), class_="tick value")
    if at > RIGHT - 60:
        label = lettering(f"n = {one.n:,}", x=px(at - 8), y=px(middle + 4), text_anchor="end", class_="tick value")
    told = f"predicted {fixed(mean)}, observed {fixed(observed)} ({fixed(low)} to {fixed(high)}), n = {one.n:,}"
    return el("g", draw_whisker(at, y.at(low), y.at(high)), draw_mark(at, middle, 0, told), label, class_="series series-0")


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n."""
    centre, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
