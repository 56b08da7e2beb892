"""Points with names: two numbers of each method, both with intervals, and levels to hold them against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headwater.evaluate.figure import Figure
from headwater.report.axes import Axis, fit
from headwater.report.markup import Markup, el, foreign
from headwater.report.numerals import number
from headwater.report.plots import draw_frame, draw_mark, draw_whisker, drawing, lettering, px, shortened

WIDTH, HEIGHT = 680.0, 430.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 668.0, 30.0, 384.0
LETTER, LINE, NAME = 6.2, 13.0, 26  # of a label: mean width of a letter, height, letters shown

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Dot:
    """`group` decides its mark and colour."""

    name: str
    group: str
    x: Figure
    y: Figure


@dataclass(frozen=True)
class Level:
    """A line across: a value of y that the dots are held against."""

    name: str
    y: Figure


def scatter(
    title: str, dots: Sequence[Dot], levels: Sequence[Level], *, id: str, x_label: str, y_label: str, note: str = ""
) -> Markup | None:
    """None where there is no dot. Labels stand where there is room for them; every dot's name is in its tooltip."""
    if not dots:
        return None
    x = fit([0.0, 1.0], LEFT, RIGHT, pad=0.02)
    y = fit([0.0, *(value for one in (*dots, *levels) for value in _reach(one.y))], BOTTOM, TOP, pad=0.06)
    groups = list(dict.fromkeys(dot.group for dot in dots))
    drawn = drawing(
        id, HEIGHT, title, _description(dots, levels), *draw_frame(x, y, x.ticks(), x_label, y_label), *_levels(levels, y),
        *(_dot(dot, x, y, groups.index(dot.group)) for dot in dots), *_labels(dots, levels, x, y), width=WIDTH,
    )  # fmt: skip
    keys = el("p", *(_key(k, group) for k, group in enumerate(groups)), el("span", "Bars are intervals."), class_="legend plot-legend")
    return el("figure", el("h3", foreign(title)), drawn, keys, el("p", note, class_="quiet") if note else None, class_="plot wide")


def _reach(figure: Figure) -> tuple[float, ...]:
    return (figure.value, *(figure.interval or ()))


def _levels(levels: Sequence[Level], y: Axis) -> Iterator[Markup]:
    for level in levels:
        if level.y.interval:
            low, high = (y.at(bound) for bound in level.y.interval)
            yield el("rect", x=px(LEFT), width=px(RIGHT - LEFT), y=px(high), height=px(max(low - high, 0.5)), class_="level-band")
        at = px(y.at(level.y.value))
        yield el("line", x1=px(LEFT), x2=px(RIGHT), y1=at, y2=at, class_="ideal")


def _dot(dot: Dot, x: Axis, y: Axis, number_of: int) -> Markup:
    at_x, at_y = x.at(dot.x.value), y.at(dot.y.value)
    up = draw_whisker(at_x, *(y.at(bound) for bound in dot.y.interval)) if dot.y.interval else None
    across = _across(at_y, *(x.at(bound) for bound in dot.x.interval)) if dot.x.interval else None
    mark = draw_mark(at_x, at_y, number_of, f"{dot.name}: {number(dot.x.value)}, {number(dot.y.value)}")
    return el("g", el("g", up, across, class_="faint"), mark, class_=f"series series-{number_of % 6}")


def _across(at: float, low: float, high: float) -> Markup:
    return el("path", d=f"M{px(low)} {px(at)}H{px(high)}", class_="whisker")


def _key(number_of: int, group: str) -> Markup:
    mark = draw_mark(11, 6, number_of, group)
    return el(
        "span", el("svg", mark, viewBox="0 0 22 12", width="22", height="12", aria_hidden="true", class_=f"series-{number_of % 6}"), group,
        class_="plot-key",
    )  # fmt: skip


def _description(dots: Sequence[Dot], levels: Sequence[Level]) -> str:
    told = [f"{dot.name}: {number(dot.x.value)}, {number(dot.y.value)}." for dot in dots]
    return " ".join([*told, *(f"{level.name}: {number(level.y.value)}." for level in levels)])


# ----------------------------------------------------------------------------------------------------------- labels


def _labels(dots: Sequence[Dot], levels: Sequence[Level], x: Axis, y: Axis) -> Iterator[Markup]:
    """The names of the levels at the left, then of the dots from the top down, each at the first free place beside its mark."""
    marks = [(x.at(dot.x.value), y.at(dot.y.value)) for dot in dots]
    taken: list[Box] = [(at - 4, up - 4, at + 4, up + 4) for at, up in marks]
    for level in sorted(levels, key=lambda one: -one.y.value):
        name = f"{level.name} {number(level.y.value, digits=2)}"
        at = y.at(level.y.value)
        spots = [(LEFT + 4, at - 4), (LEFT + 4, at + 12), (LEFT + 150, at - 4), (LEFT + 150, at + 12)]
        spot = next((one for one in spots if _free(_box(one, name), taken)), spots[0])
        taken.append(_box(spot, name))
        yield lettering(name, x=px(spot[0]), y=px(spot[1]), class_="label level-name")
    for dot, (at, up) in sorted(zip(dots, marks, strict=True), key=lambda pair: pair[1][1]):
        name = shortened(dot.name, NAME)
        width = len(name) * LETTER
        spots = [(at + 7, up + 4), (at - 7 - width, up + 4), (at - width / 2, up - 8), (at - width / 2, up + 16), (at + 7, up - 7),
                 (at + 7, up + 15), (at - 7 - width, up - 7), (at - 7 - width, up + 15)]  # fmt: skip
        spot = next((one for one in spots if _inside(_box(one, name)) and _free(_box(one, name), taken)), None)
        if spot:
            taken.append(_box(spot, name))
            yield lettering(name, x=px(spot[0]), y=px(spot[1]), class_="tick dot-name")


def _box(spot: tuple[float, float], name: str) -> Box:
    return (spot[0], spot[1] - LINE + 3, spot[0] + len(name) * LETTER, spot[1] + 2)


def _inside(box: Box) -> bool:
    return box[0] >= LEFT and box[2] <= RIGHT + 10 and box[1] >= TOP - 6 and box[3] <= BOTTOM


def _free(box: Box, taken: Sequence[Box]) -> bool:
    return not any(box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken)
