"""How much of the gradient methods' failure each choice explains, from the table of the ablation. Q queries

A failure is what lacks to the score of one who knows the class: 1 for accuracy, the most that k places can hold for cover. Every difference
is paired by query, with a bootstrap over queries.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from headwater.audit.check import Plot, Series
from headwater.evaluate.figure import Figure, mean_figure, percentiles, weights
from headwater.study.cells import Cell, Place
from headwater.study.parts.points import METRICS, Marks, Point, Score, Table, mean_difference, variant

MENDED, PUT_BACK = "one mended", "one put back"
METHOD = "explained"
SHOWN = ("accuracy", "cover")
CAUSES = ("padding", "prompt", "hubs", "solver")


@dataclass(frozen=True)
class Question:
    """From the paper's point, where everything counts, to the best practice; `ceiling` is what the class itself has.

    The causes are mended by masking ("prompt", "padding"), by the score `unhubbed` and by the preconditioner `solved`.
    """

    paper: Point
    best: Point
    unhubbed: Score
    solved: str
    ceiling: Marks

    def mended(self, causes: Collection[str]) -> Point:
        """The paper's point with these of `CAUSES` mended."""
        masks = " and ".join(name for name in ("prompt", "padding") if name in causes)
        found = {"mask": masks, "score": "hubs" in causes and self.unhubbed, "preconditioner": "solver" in causes and self.solved}
        return self.paper.but(**{kind: value for kind, value in found.items() if value})


# ---------------------------------------------------------------------------------------------------------- one changed


def one_changed(here: Place, table: Table, question: Question) -> Iterator[Cell]:
    """Every single change of the paper's point; every choice of the best practice put back; both points themselves."""
    paper, best = question.paper, question.best
    for name, point in (("paper", paper), ("best practice", best)):
        for metric in METRICS:
            facts = f"start={name}; preconditioner={point.preconditioner}; {point.variant}"
            yield here.cell(METHOD, metric, mean_figure(table[point].by_query[metric]), variant=facts)
    for point in table:
        changes = paper.changes(point)
        if len(changes) == 1 and not point.layers.startswith("depth"):
            yield from _changed(here, table, paper, point, variant(**changes), MENDED)
    for kind, value in best.changes(paper).items():
        yield from _changed(here, table, best, best.but(**{kind: value}), variant(**{kind: value}), PUT_BACK)
    yield from _changed(here, table, paper, best, "all", MENDED)


def _changed(here: Place, table: Table, first: Point, second: Point, named: str, what: str) -> Iterator[Cell]:
    for metric in METRICS:
        yield here.cell(METHOD, f"{metric} change ({what})", mean_difference(table, first, second, metric), variant=named)


def figure(table: Table, question: Question) -> Plot:
    """Bars of accuracy and cover: each choice mended alone, the same choice put back alone, all at once, and what remains then."""
    paper, best = question.paper, question.best
    mends, back = paper.changes(best), best.changes(paper)
    names = [*(f"{kind}: {back[kind]} → {mends[kind]}" for kind in mends), "all of these", "remains"]
    series = []
    for metric in SHOWN:
        remains = _lacking(table[best], question.ceiling, metric)
        whole = mean_difference(table, paper, best, metric)
        mended = [mean_difference(table, paper, paper.but(**{kind: value}), metric) for kind, value in mends.items()]
        kept = [mean_difference(table, best.but(**{kind: value}), best, metric) for kind, value in back.items()]
        series += [_series(f"{metric}, {MENDED}", names, [*mended, whole, mean_figure(remains)])]
        series += [_series(f"{metric}, lost where {PUT_BACK}", names, [*kept, None, None])]
    note = (
        f"From the paper's point (preconditioner {paper.preconditioner}; {paper.variant}) to {best.preconditioner}; {best.variant}. Where "
        "a choice mends much alone and costs nothing when put back, another mends the same queries."
    )
    return Plot("What each choice explains of the failure", "choice", "change", series, kind="bar", note=note)


def _series(name: str, names: list[str], figures: list[Figure | None]) -> Series:
    ends = [None if one is None else one.interval for one in figures]
    value = [None if one is None or not math.isfinite(one.value) else one.value for one in figures]
    low, high = ([None if end is None else end[side] for end in ends] for side in (0, 1))
    return Series(name, names, value, low, high)


# --------------------------------------------------------------------------------------------------------------- causes


def causes(here: Place, table: Table, question: Question) -> Iterator[Cell]:
    """What padding and prompt in the loss, hubs and the solver explain, in points and as shares; and what remains with all four mended.

    "points" are Shapley values: what mending a cause adds, mean over all orders in which the causes can be mended, so that they add up to
    what mending all adds ("cause=all") and with "cause=remaining" to the whole failure ("cause=failure"). Where causes interact, "points
    (first)", a cause mended alone, and "points (last)", mended after the others, differ from it on either side. "share" is points over the
    failure. A cause whose mending harms has negative points.
    """
    for metric in METRICS:
        failure_Q = _lacking(table[question.paper], question.ceiling, metric)
        gains = {name: gains_of(name, table, question, metric) for name in CAUSES}
        all_Q = np.sum([one.mean_Q for one in gains.values()], axis=0)
        for name, one in gains.items():
            named = f"cause={name}"
            yield here.cell(METHOD, f"{metric} points (first)", mean_figure(one.first_Q), variant=named)
            yield here.cell(METHOD, f"{metric} points (last)", mean_figure(one.last_Q), variant=named)
        parts = {**{name: one.mean_Q for name, one in gains.items()}, "all": all_Q, "remaining": failure_Q - all_Q, "failure": failure_Q}
        for name, part_Q in parts.items():
            yield here.cell(METHOD, f"{metric} points", mean_figure(part_Q), variant=f"cause={name}")
            if name != "failure":
                because = "" if np.nanmean(failure_Q) > 0 else "nothing fails at the paper's point"
                yield here.cell(METHOD, f"{metric} share", share_figure(part_Q, failure_Q), variant=f"cause={name}", because=because)


@dataclass(frozen=True, eq=False)
class Gains:
    """[Q] what mending one cause adds: before the others, after them, and mean over all orders."""

    first_Q: np.ndarray
    last_Q: np.ndarray
    mean_Q: np.ndarray


def gains_of(name: str, table: Table, question: Question, metric: str) -> Gains:
    def worth_Q(mended: frozenset[str]) -> np.ndarray:
        return table[question.mended(mended)].by_query[metric]

    def gain_Q(before: frozenset[str]) -> np.ndarray:
        return worth_Q(before | {name}) - worth_Q(before)

    orders = [frozenset(order[: order.index(name)]) for order in permutations(CAUSES)]
    return Gains(gain_Q(frozenset()), gain_Q(frozenset(CAUSES) - {name}), np.mean([gain_Q(before) for before in orders], axis=0))


def share_figure(part_Q: np.ndarray, whole_Q: np.ndarray) -> Figure:
    """mean(part) / mean(whole), both resampled together; NaN where the whole is not above 0, no interval where it is not in a resample."""
    known_Q = np.isfinite(part_Q) & np.isfinite(whole_Q)
    part_Q, whole_Q, n = part_Q[known_Q], whole_Q[known_Q], int(known_Q.sum())
    if n == 0 or whole_Q.mean() <= 0:
        return Figure(math.nan, None, n, "queries")
    value = float(part_Q.mean() / whole_Q.mean())
    if n < 2:
        return Figure(value, None, n, "queries")
    drawn_BQ = weights(n)
    wholes_B = drawn_BQ @ whole_Q
    known = bool((wholes_B > 0).all())
    return Figure(value, percentiles(drawn_BQ @ part_Q / wholes_B, n) if known else None, n, "queries")


def _lacking(marks: Marks, ceiling: Marks, metric: str) -> np.ndarray:
    return ceiling.by_query[metric] - marks.by_query[metric]


def causes_figure(table: Table, question: Question) -> Plot:
    """Bars of the points (accuracy and cover) that each cause explains, and of what remains."""
    series = []
    for metric in SHOWN:
        gains = [gains_of(name, table, question, metric).mean_Q for name in CAUSES]
        remaining_Q = _lacking(table[question.mended(CAUSES)], question.ceiling, metric)
        series.append(_series(metric, [*CAUSES, "remaining"], [mean_figure(part_Q) for part_Q in [*gains, remaining_Q]]))
    note = (
        "What mending a cause adds, mean over all orders of mending them: the bars add up to the whole failure. "
        f"Prompt and padding: masked in the loss; hubs: {question.unhubbed} scores; solver: {question.solved}."
    )
    return Plot("What the gradient methods' failure is made of", "cause", "of the class's own score", series, kind="bar", note=note)
