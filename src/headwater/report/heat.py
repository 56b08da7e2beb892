"""Heat maps of scores, queries by training rows: a picture of one pixel a score, in the colours of the page. Q queries · N training rows"""

from __future__ import annotations

import zipfile
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np

from headwater.report.markup import Markup, el, foreign
from headwater.report.plots import drawing, lettering, px, shortened
from headwater.types import DataError

LEVELS = 7  # on each side of 0: few, so that the picture is small
REACH = 3.0  # standard deviations of a query's scores at which the colour is full
WIDEST = 1200  # columns of a picture; where there are more, each holds the largest of its neighbours
POSITIVE, NEGATIVE = (43, 130, 188), (205, 104, 42)  # in between the colours of the light and of the dark page

WIDTH, LEFT, RIGHT, TOP, HIGH, SQUARE = 440.0, 74.0, 436.0, 8.0, 190.0, 4.0


@dataclass(frozen=True, eq=False)
class Heat:
    """Scores of several methods, rows and queries sorted by class; classes are codes into `classes`."""

    values_QN: Mapping[str, np.ndarray]
    train_class_N: np.ndarray
    query_class_Q: np.ndarray
    classes: Sequence[str]


def read_heat(path: Path) -> Heat:
    """Raises DataError where the file is not there, or is not what it claims to be."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        train_N, query_Q, classes = (arrays.pop(name) for name in ("train_class", "query_class", "classes"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} holds no heat maps ({error}): write the study again, or leave the file's name out of study.json."
        ) from None
    wrong = [name for name, values in arrays.items() if values.shape != (len(query_Q), len(train_N))]
    if wrong:
        shape = arrays[wrong[0]].shape
        raise DataError(f"{path}: {wrong[0]} has the shape {shape}, expected {(len(query_Q), len(train_N))}, queries by training rows.")
    return Heat(arrays, train_N, query_Q, [str(name) for name in classes.tolist()])


def heat_figures(heat: Heat, *, id: str) -> list[Markup]:
    return [_figure(name, values_QN, heat, id=f"{id}-{k}") for k, (name, values_QN) in enumerate(heat.values_QN.items())]


def _figure(name: str, values_QN: np.ndarray, heat: Heat, *, id: str) -> Markup:
    bottom = TOP + HIGH
    box = {"x": px(LEFT), "y": px(TOP), "width": px(RIGHT - LEFT), "height": px(HIGH)}
    source = f"data:image/png;base64,{b64encode(picture(values_QN)).decode()}"
    told = f"{values_QN.shape[0]} queries by {values_QN.shape[1]} training rows, both sorted by class: {', '.join(heat.classes)}."
    drawn = drawing(
        id,
        bottom + 34,
        f"Scores of {name}",
        told,
        el("image", href=source, preserveAspectRatio="none", class_="pixels", **box),
        el("rect", class_="frame", fill="none", **box),
        *_borders(heat.train_class_N, heat.classes, across=True),
        *_borders(heat.query_class_Q, heat.classes, across=False),
        lettering("training rows", x=px((LEFT + RIGHT) / 2), y=px(bottom + 30), text_anchor="middle", class_="label"),
        width=WIDTH,
    )
    return el("figure", el("h3", foreign(name)), drawn, class_="plot heat")


def _borders(class_N: np.ndarray, classes: Sequence[str], *, across: bool) -> list[Markup]:
    """A line between classes, and the class's name at its middle where there is room for it."""
    start, length = (LEFT, RIGHT - LEFT) if across else (TOP, HIGH)
    edges = [0, *(np.flatnonzero(np.diff(class_N)) + 1).tolist(), len(class_N)]
    whole = {"x1": LEFT, "x2": RIGHT, "y1": TOP, "y2": TOP + HIGH}
    out = []
    for low, high in pairwise(edges):
        first, last = (start + length * edge / len(class_N) for edge in (low, high))
        if low:
            spot = whole | ({"x1": first, "x2": first} if across else {"y1": first, "y2": first})
            out.append(el("line", **{name: px(value) for name, value in spot.items()}, class_="border"))
        letters = int((last - first) / 7) if across else (10 if last - first >= 11 else 0)
        if letters >= 3:
            middle = (first + last) / 2
            down = {"x": px(middle), "y": px(TOP + HIGH + 14), "text_anchor": "middle"}
            beside = {"x": px(LEFT - 5), "y": px(middle + 4), "text_anchor": "end"}
            name = classes[int(class_N[low])]
            out.append(lettering(shortened(name, letters), told=name, class_="tick", **(down if across else beside)))
    return out


def picture(values_QN: np.ndarray) -> bytes:
    """PNG: each query's scores less their mean, over their standard deviation; blue above, orange below, and clear at the mean.

    What is no number is clear. So a row that is high for every query is a line down the picture, and a class is a block.
    """
    from matplotlib.image import imsave

    with np.errstate(invalid="ignore", divide="ignore"):
        values_QN = np.where(np.isfinite(values_QN), values_QN, np.nan).astype(float)
        known_Q1 = np.isfinite(values_QN).sum(1, keepdims=True)
        mean_Q1 = np.nansum(values_QN, axis=1, keepdims=True) / known_Q1
        spread_Q1 = np.sqrt(np.nansum((values_QN - mean_Q1) ** 2, axis=1, keepdims=True) / known_Q1)
        standard_QN = np.nan_to_num((values_QN - mean_Q1) / spread_Q1, nan=0.0, posinf=0.0, neginf=0.0)
    level_QN = np.clip(np.round(narrowed(standard_QN) / REACH * LEVELS), -LEVELS, LEVELS)
    pixels = np.zeros((*level_QN.shape, 4), np.uint8)
    pixels[..., :3] = np.where(level_QN[..., None] > 0, POSITIVE, NEGATIVE)
    pixels[..., 3] = np.round(np.abs(level_QN) / LEVELS * 255)
    file = BytesIO()
    imsave(file, pixels, format="png")
    return file.getvalue()


def narrowed(values_QN: np.ndarray, widest: int = WIDEST) -> np.ndarray:
    """[Q, at most widest]: neighbouring columns share one, which keeps the value furthest from 0, so that a single hub is not lost."""
    n = values_QN.shape[1]
    if n <= widest:
        return values_QN
    groups = np.array_split(np.arange(n), widest)
    return np.stack([np.take_along_axis(values_QN[:, g], np.abs(values_QN[:, g]).argmax(1)[:, None], 1)[:, 0] for g in groups], axis=1)
