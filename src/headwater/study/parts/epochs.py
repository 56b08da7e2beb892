"""Cause 2, convergence: every method at the checkpoints of one training, beside the losses. Several seeds are several worlds.

C checkpoints · Q queries · N training rows
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from headwater.audit.check import Plot, Series
from headwater.evaluate.agreement import FEWEST
from headwater.evaluate.classes import accuracy, accuracy_Q, cover
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.two_way import two_way_figure
from headwater.index.read import StoredIndex
from headwater.study.cells import Cell, Place
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.settings import LISSA, WORDS, Setting, drawn_line, fisher, halves, joined, lds_table, scores_or_why_not, setting
from headwater.study.world import World
from headwater.types import Finding, Member, Scores, Truth

PLAIN = ("grad_dot", "grad_cos", "datainf", "lissa_released", "relatif", "repsim", "repsim_response")
SETTINGS = (*map(setting, PLAIN), fisher(0.1), fisher(100), LISSA, WORDS)
NOT_ALONG = {
    "rept": "its feature is stored at the final model alone",
    **dict.fromkeys(("tracin", "less", "trackstar", "dda"), "it is made of all checkpoints together"),
    **dict.fromkeys(
        ("ekfac", "ekfac_cg", "trak"), "it needs the model itself, or a Cholesky of its own, at every checkpoint: left to `tables`"
    ),
}
CONSTANT = ("lexical",)
"""Methods that look at no model: one line for all epochs, to hold the others against."""

ACCURACY, COVER, LDS, LOSS = "accuracy", "cover", "lds", "loss"
MOVED = "change of accuracy over the last half of the epochs"
ROWS, QUERIES = "training rows", "queries"


@dataclass(frozen=True)
class Epochs:
    """Accuracy, cover and LDS of each method by the model of each checkpoint; the losses of rows and queries at it.

    LDS is against the trainings to the end (`settings.halves`): whether an early model's scores say what the whole training did. The spread
    over epochs is the largest less the smallest over the last half of the checkpoints, two at least; whether accuracy moved between the
    first and the last of these is tested on the same queries. Cost: each method's, once a checkpoint; the bank, where it is not there yet.
    """

    name = "epochs"
    summary = "cause 2: accuracy, cover, LDS and losses along the epochs"
    metrics = (ACCURACY, COVER, LDS, LOSS, *(f"spread of {metric} over epochs" for metric in (ACCURACY, COVER, LDS)), MOVED)
    reference = "Li et al. 2024, section 4.2"

    settings: tuple[Setting, ...] = SETTINGS

    def unfit(self, world: World) -> str:
        n = len(world.checkpoints)
        return "" if n > 1 else f"{n} checkpoints: nothing can be said of the way between them"

    def __call__(self, world: World) -> Outcome:
        start = time.monotonic()
        here, truth = place(self, world), halves(world) if world.size.halves >= FEWEST else None
        courses = [course(world, tried, truth) for tried in self.settings]
        losses = [losses_at(world, checkpoint) for checkpoint in world.checkpoints]
        cells = [*(cell for one in courses for cell in one.cells(here)), *(cell for one in losses for cell in one.cells(here))]
        cells += [here.missing(method, ACCURACY, why) for method, why in NOT_ALONG.items()]
        plots = [*(plot(courses, metric) for metric in (ACCURACY, COVER, LDS)), loss_plot(losses)]
        return Outcome(cells, [finding(courses)], [one for one in plots if one.series], time.monotonic() - start)


def epoch_of(world: World, checkpoint: Member) -> float:
    assert checkpoint.step is not None, f"the checkpoint {checkpoint.name} has a step"
    return checkpoint.step / math.ceil(len(world.rows) / world.model.batch_rows)


def at_epoch(epoch: float) -> str:
    return f"epoch={epoch:g}"


# ---------------------------------------------------------------------------------------------------- a method's course


@dataclass(frozen=True, eq=False)
class At:
    """A method at one checkpoint; `because` says why it has no figures there."""

    epoch: float
    figures: dict[str, Figure]
    hits_Q: np.ndarray | None = None
    because: str = ""


@dataclass(frozen=True)
class Course:
    tried: Setting
    points: Sequence[At]

    @property
    def known(self) -> list[At]:
        return [point for point in self.points if point.figures]

    @property
    def last_half(self) -> list[At]:
        """Of the checkpoints where the method has figures; two at least."""
        return self.known[-max(2, math.ceil(len(self.known) / 2)) :]

    def spread(self, metric: str) -> float:
        """The largest less the smallest over the last half; NaN with fewer than two."""
        values = [point.figures[metric].value for point in self.last_half if metric in point.figures]
        known = [value for value in values if math.isfinite(value)]
        return max(known) - min(known) if len(known) > 1 else math.nan

    def moved(self) -> Figure:
        """The accuracy at the last checkpoint less that at the first of the last half, on the same queries."""
        first, last = (self.last_half[i].hits_Q for i in (0, -1)) if len(self.last_half) > 1 else (None, None)
        return Figure(math.nan, None, 0, "queries") if first is None or last is None else mean_figure(last - first)

    def cells(self, here: Place) -> Iterator[Cell]:
        method, variant = self.tried.method, self.tried.variant
        for point in self.points:
            which = joined(variant, at_epoch(point.epoch))
            for metric in () if point.figures else (ACCURACY, COVER, LDS):
                yield here.missing(method, metric, point.because, variant=which)
            for metric, figure in point.figures.items():
                yield here.cell(method, metric, figure, variant=which)
        few = "fewer than two checkpoints have figures"
        for metric in (ACCURACY, COVER, LDS):
            spread, facts = self.spread(metric), {"n": len(self.last_half), "over": "checkpoints"}
            yield here.cell(method, spread_of(metric), spread, variant=variant, because=because(spread, few), **facts)
        moved = self.moved()
        yield here.cell(method, MOVED, moved, variant=variant, because=because(moved.value, few))


def spread_of(metric: str) -> str:
    return f"spread of {metric} over epochs"


def because(value: float, why: str) -> str:
    return "" if math.isfinite(value) else why


def course(world: World, tried: Setting, truth: Truth | None) -> Course:
    points = []
    for checkpoint in world.checkpoints:
        anywhere = tried.method in CONSTANT or is_final(world, checkpoint)
        scores = scores_or_why_not(world, tried, at=None if anywhere else checkpoint)
        points.append(point(world, epoch_of(world, checkpoint), scores, truth))
    return Course(tried, points)


def is_final(world: World, checkpoint: Member) -> bool:
    """Whether its weights are those after training: of these the index keeps more features."""
    stored = cast(StoredIndex, checkpoint.index)
    return stored.spec.facts["model"] == world.index.spec.facts["model"]


def point(world: World, epoch: float, scores: Scores | str, truth: Truth | None) -> At:
    if isinstance(scores, str):
        return At(epoch, {}, because=scores)
    ranking = Ranking(scores.values_QN)
    figures = {ACCURACY: accuracy(ranking, world.labels), COVER: cover(ranking, world.labels, world.k)}
    if truth is not None:
        figures[LDS] = two_way_figure(lds_table(scores, truth), correlation=True)
    return At(epoch, figures, accuracy_Q(ranking, world.labels))


# -------------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Losses:
    """Nats a target token; for a classifier nats a row, and the queries' own measure in the place of their loss."""

    epoch: float
    rows: Figure
    queries: Figure
    metric: str  # of the queries
    unit: str | None

    def cells(self, here: Place) -> Iterator[Cell]:
        yield here.cell(ROWS, LOSS, self.rows, variant=at_epoch(self.epoch), unit="nats")
        yield here.cell(QUERIES, self.metric, self.queries, variant=at_epoch(self.epoch), unit=self.unit)


def losses_at(world: World, checkpoint: Member) -> Losses:
    """Nothing is computed: the index keeps the loss of each row at the checkpoint, the asked queries their measure."""
    rows, asked = world.at(checkpoint)
    loss_N = rows.column("loss").astype(float) / np.array([max(row.n_loss_tokens, 1) for row in world.rows])
    measure_Q = asked.column("measure").astype(float)
    epoch, of_rows = epoch_of(world, checkpoint), mean_figure(loss_N, over="rows")
    if world.measure.name != "response_log_probability":
        return Losses(epoch, of_rows, mean_figure(measure_Q), world.measure.name, world.measure.unit)
    loss_Q = -measure_Q / np.array([max(query.n_loss_tokens, 1) for query in world.queries])
    return Losses(epoch, of_rows, mean_figure(loss_Q), LOSS, "nats")


# --------------------------------------------------------------------------------------------------- what is said of it


def finding(courses: Sequence[Course]) -> Finding:
    """`warn` where the accuracy of a method still moved over the last half of the epochs, by the interval over queries."""
    moved = {str(one.tried): one.moved() for one in courses if one.tried.method not in CONSTANT}
    known = {name: figure for name, figure in moved.items() if figure.interval is not None}
    if not known:
        return Finding("epochs", "unknown", "Too few checkpoints or queries to tell whether a method still moved.", next_step=MORE)
    sure = {name: figure for name, figure in known.items() if figure.interval and (figure.interval[0] > 0 or figure.interval[1] < 0)}
    most = max(known, key=lambda name: abs(known[name].value))
    facts = {"value": known[most].value, "interval": known[most].interval, "n": known[most].n}
    spreads = sorted((one.spread(ACCURACY), str(one.tried)) for one in courses if math.isfinite(one.spread(ACCURACY)))
    spread = f"The spread of accuracy goes from {spreads[0][0]:.2g} ({spreads[0][1]}) to {spreads[-1][0]:.2g} ({spreads[-1][1]})."
    if not sure:
        still = all(max(map(abs, figure.interval)) <= STILL for figure in known.values() if figure.interval)
        what = f"moved by more than {STILL:g}" if still else "is known to have moved: undetermined"
        told = f"Over the last half of the epochs the accuracy of none of {len(known)} methods {what}. {spread}"
        return Finding("epochs", "ok" if still else "unknown", told, **facts, next_step=None if still else MORE)
    listed = ", ".join(f"{name} {figure}" for name, figure in sorted(sure.items()))
    told = f"Over the last half of the epochs the accuracy of {len(sure)} of {len(known)} methods moved: {listed}. {spread}"
    return Finding("epochs", "warn", told, **facts, next_step="Report these methods at several checkpoints, or averaged over them.")


STILL = 0.1  # of accuracy
MORE = "Train with more checkpoints, or ask more queries."


def plot(courses: Sequence[Course], metric: str) -> Plot:
    drawn = [line(str(one.tried), points, metric) for one in courses if (points := [p for p in one.known if metric in p.figures])]
    return Plot(f"{metric.upper() if metric == LDS else metric.capitalize()} along the epochs", "epoch", metric, drawn)


def line(name: str, points: Sequence[At], metric: str) -> Series:
    return drawn_line(name, [(one.epoch, one.figures[metric]) for one in points])


def loss_plot(losses: Sequence[Losses]) -> Plot:
    drawn = [drawn_line(ROWS, [(one.epoch, one.rows) for one in losses]), drawn_line(QUERIES, [(one.epoch, one.queries) for one in losses])]
    metric = losses[0].metric
    note = "The queries were not trained on." if metric == LOSS else f"The queries' line is their {metric}."
    return Plot("Losses along the epochs", "epoch", "nats a target", drawn, note=note)
