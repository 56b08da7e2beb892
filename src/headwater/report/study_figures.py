"""The drawings of a study: class beside cause, curves along the epochs, what each choice changes, attack success against distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from headwater.report.axes import fit
from headwater.report.markup import Markup, el, foreign
from headwater.report.numerals import fixed, number
from headwater.report.plots import drawing, figure, lettering, px, shortened
from headwater.report.scatter import Dot, Level, scatter
from headwater.report.schema import PlotRecord, PlotSeries
from headwater.report.study_schema import Chapter, Pooled, options, without
from headwater.report.study_tables import metric_name

LINES = 6  # of a plot: as many as there are different strokes
CONTROLS = frozenset({"lexical", "tfidf", "embedding", "length", "loss", "random"})
REPRESENTATION = frozenset({"repsim", "repsim_response", "rept"})
CURVATURE = frozenset(
    {"datainf", "lissa", "lissa_released", "fisher", "ggn", "cg", "arnoldi", "kfac", "ekfac", "ekfac_cg", "nystrom", "fastif"}
)
LEVELS = {"noise ceiling": "noise ceiling", "ceiling": "noise ceiling", "same class": "the class alone"}
"""Methods of the ground truth that are lines to hold the others against."""


def group_of(method: str) -> str:
    if method in REPRESENTATION:
        return "representation"
    if method in CURVATURE:
        return "gradient, with an inverse curvature"
    return "text, length, chance" if method in CONTROLS else "gradient"


def way(one: Pooled) -> str:
    return f"{one.method} ({one.variant})" if one.variant else one.method


# ------------------------------------------------------------------------------------------------ class beside cause


def class_and_cause(chapter: Chapter, *, id: str) -> Markup | None:
    """Each method at its accuracy and its LDS: to the right is right about the class, up is right about the cause."""
    accuracy = {(one.method, one.variant): one for part in ("tables", "truth") for one in chapter.find(part, "accuracy")}
    lds = chapter.find("truth", "lds")
    dots = [
        Dot(way(one), group_of(one.method), found.figure, one.figure)
        for one in lds
        if one.method not in LEVELS and one.figure and (found := accuracy.get((one.method, one.variant))) and found.figure
    ]
    levels = [Level(LEVELS[one.method], one.figure) for one in lds if one.method in LEVELS and one.figure]
    note = (
        "Across: the share of queries whose first row is of their class. Up: how well the scores say what training on other rows does "
        "(LDS). A method far to the right and low is right about the class and wrong about the cause. Dashed, with their intervals: what "
        "noise lets any method reach, and what knowing the class alone is worth."
    )
    return scatter("Right class, right cause", dots, levels, id=id, x_label="accuracy (class)", y_label="LDS (cause)", note=note)


# -------------------------------------------------------------------------------------------------- along the epochs


def epoch_plots(chapter: Chapter) -> list[PlotRecord]:
    """For each metric its course along the epochs, at most six methods a plot."""
    return [plot for metric, cells in by_metric(along(chapter.part("epochs"), "epoch")) for plot in _courses(metric, cells, "epoch")]


def along(pooled: Sequence[Pooled], option: str) -> list[Pooled]:
    """Those whose variant has a number for this option."""
    return [one for one in pooled if math.isfinite(place_of(one, option))]


def place_of(one: Pooled, option: str) -> float:
    try:
        return float(options(one.variant).get(option, "nan"))
    except ValueError:
        return math.nan


def by_metric(pooled: Sequence[Pooled]) -> Iterator[tuple[str, list[Pooled]]]:
    for metric in dict.fromkeys(one.metric for one in pooled):
        yield metric, [one for one in pooled if one.metric == metric]


def _courses(metric: str, cells: Sequence[Pooled], option: str) -> Iterator[PlotRecord]:
    lines: dict[str, list[Pooled]] = {}
    for one in cells:
        rest = without(one.variant, option)
        lines.setdefault(f"{one.method} ({rest})" if rest else one.method, []).append(one)
    series = [line(name, found, lambda one: place_of(one, option)) for name, found in lines.items()]
    pages = [series[k : k + LINES] for k in range(0, len(series), LINES)]
    for k, page in enumerate(pages):
        counted = f" ({k + 1} of {len(pages)})" if len(pages) > 1 else ""
        yield PlotRecord(title=f"{metric_name(metric)} along the epochs{counted}", x=option, y=metric_name(metric), series=page)


def line(name: str, pooled: Sequence[Pooled], x: Callable[[Pooled], float | str]) -> PlotSeries:
    """In the order of x; with a band where every number has an interval."""
    ordered = sorted(pooled, key=x)  # type: ignore[arg-type]
    return series_of(name, [x(one) for one in ordered], ordered)


def series_of(name: str, x: Sequence[float | str], pooled: Sequence[Pooled | None]) -> PlotSeries:
    figures = [one.figure if one else None for one in pooled]
    spans = [figure.interval if figure and figure.interval else (None, None) for figure in figures]
    bounds = {"low": [low for low, _ in spans], "high": [high for _, high in spans]} if any(low is not None for low, _ in spans) else {}
    return PlotSeries(name=name, x=list(x), y=[figure.value if figure else None for figure in figures], **bounds)


# ------------------------------------------------------------------------------------------------------ the ablation


def explained_plots(chapter: Chapter) -> list[PlotRecord]:
    """Bars of what each cause explains: the metrics of method "explained" that end in points or share, one plot a kind."""
    cells = [one for one in chapter.part("ablation") if one.method == "explained"]
    titles = {"points": "What the failure is made of, in points", "share": "What the failure is made of, as shares of it"}
    plots = []
    for ending, title in titles.items():
        found = [one for one in cells if one.metric.endswith(f" {ending}") and one.variant != "cause=failure"]
        names = list(dict.fromkeys(named(one.variant) for one in found))
        series = []
        for metric, of_metric in list(by_metric(found))[:LINES]:
            at = {named(one.variant): one for one in of_metric}
            series.append(series_of(metric.removesuffix(f" {ending}"), names, [at.get(name) for name in names]))
        if series:
            plots.append(PlotRecord(title=title, x="", y=ending, series=series, kind="bar"))
    return plots


def named(variant: str) -> str:
    """ "cause=padding" as "padding"; a variant of several options as it is."""
    found = options(variant)
    return next(iter(found.values())) or variant if len(found) == 1 else variant


ROW, GAP, NAMES, RIGHT, HEAD = 19.0, 13.0, 196.0, 640.0, 34.0


def choices_figure(chapter: Chapter, metric: str, *, id: str) -> Markup | None:
    """Every point of the grid as a dot on the line of each choice that it has, and the mean over all the other choices."""
    points = [one for one in chapter.find("ablation", metric) if one.method != "explained"]
    grid = [one for one in points if one.value is not None and "score" in options(one.variant)]
    if not grid:
        return None
    choices = {kind: by_option(grid, kind) for kind in ("mask", "score", "preconditioner", "layers")}
    shown = {kind: lines for kind, lines in choices.items() if len(lines) > 1}
    x = fit([one.value for one in grid if one.value is not None], NAMES + 8, RIGHT - 40, pad=0.05)
    bottom = HEAD + sum(len(lines) * ROW + GAP for lines in shown.values())
    children: list[Markup] = []
    for tick, written in x.ticks():
        children.append(el("line", x1=px(x.at(tick)), x2=px(x.at(tick)), y1=px(HEAD - 8), y2=px(bottom), class_="grid"))
        children.append(lettering(written, x=px(x.at(tick)), y=px(bottom + 16), text_anchor="middle", class_="tick"))
    top = HEAD
    for kind, lines in shown.items():
        children.append(lettering(kind, x="0", y=px(top + ROW / 2 + 4), class_="label kind"))
        for name, values in lines.items():
            children.append(_choice(name, values, x.at, top + ROW / 2))
            top += ROW
        top += GAP
    children.append(lettering(metric_name(metric), x=px(NAMES + 8), y="14", class_="label"))
    told = " ".join(f"{kind} {name}: mean {number(fmean(values))}." for kind, lines in shown.items() for name, values in lines.items())
    title = f"{metric_name(metric)} by each choice"
    drawn = drawing(id, bottom + 26, title, told, *children, width=RIGHT)
    note = f"A dot is one point of the grid ({len(grid)} of them); the tick is the mean over all the other choices."
    return el("figure", el("h3", foreign(title)), drawn, el("p", note, class_="quiet"), class_="plot wide choices")


def by_option(grid: Sequence[Pooled], kind: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for one in grid:
        name = one.method if kind == "preconditioner" else options(one.variant).get(kind, "")
        if name and one.value is not None:
            found.setdefault(name, []).append(one.value)
    return found


def _choice(name: str, values: Sequence[float], at: Callable[[float], float], middle: float) -> Markup:
    mean = fmean(values)
    return el(
        "g",
        lettering(shortened(name, 20), told=name, x=px(NAMES), y=px(middle), text_anchor="end", class_="tick name"),
        *(el("circle", cx=px(at(value)), cy=px(middle), r="2.6", class_="point") for value in values),
        el("path", d=f"M{px(at(mean))} {px(middle - 7)}v14", class_="mean"),
        lettering(fixed(mean), x=px(RIGHT - 34), y=px(middle + 4), class_="tick value"),
        class_="series series-0",
    )


# --------------------------------------------------------------------------------------------------------- behaviour


def behaviour_plots(chapter: Chapter) -> list[PlotRecord]:
    """Attack success against parameter distance, a line for each data set; then every metric along the epochs."""
    cells = along(chapter.part("behaviour"), "epoch")
    success, distance = (
        {(one.method, without(one.variant, "epoch"), place_of(one, "epoch")): one for one in cells if one.metric == metric}
        for metric in ("attack success", "parameter distance")
    )
    lines: dict[str, list[tuple[float, float, Pooled]]] = {}
    for (method, rest, epoch), one in success.items():
        found = distance.get((method, rest, epoch))
        if found and found.value is not None:
            lines.setdefault(named(rest) or method, []).append((epoch, found.value, one))
    series = [_against(name, sorted(found, key=lambda point: point[0])) for name, found in lines.items()]
    note = "One point an epoch. Were distance behaviour, the lines would lie on one another."
    title = "Attack success against parameter distance"
    against = PlotRecord(title=title, x="parameter distance", y="attack success", series=series, note=note)
    return [*([against] if series else []), *(plot for metric, found in by_metric(cells) for plot in _courses(metric, found, "epoch"))]


def _against(name: str, points: Sequence[tuple[float, float, Pooled]]) -> PlotSeries:
    return series_of(name, [distance for _, distance, _ in points], [one for *_, one in points])


def plot_figures(plots: Sequence[PlotRecord], *, id: str) -> Markup | None:
    return el("div", *(figure(plot, id=f"{id}-{k}") for k, plot in enumerate(plots)), class_="plots") if plots else None
