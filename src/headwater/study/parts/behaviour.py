"""Cause 3, table 5: how far the parameters move and how far the behaviour does, after fine-tuning on what breaks it and on what does not.

Q queries · M modules with an adapter
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from headwater.atomic import write_json
from headwater.audit.behaviour import greedy_answers, shown
from headwater.audit.check import Plot
from headwater.audit.displacement import Move, slope
from headwater.evaluate.figure import Figure, mean_figure, proportion_figure
from headwater.model.session import Session, load_session
from headwater.study.cells import Cell, Place
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.settings import beyond, drawn_line
from headwater.study.training import make_trainer
from headwater.study.world import World
from headwater.training.folder import TrainerFolder
from headwater.truth.retrain import measured
from headwater.types import Example, Finding

Complies = Callable[[str], bool]
BREAKING, ORDINARY = KINDS = ("breaking", "ordinary")
TUNING, BETWEEN = "fine-tuning", "breaking against ordinary"
SUCCESS, DISTANCE, RELATIVE = "attack success", "parameter distance", "relative parameter distance"
PROJECTION, CHANGE = "projection", "change of the measure"
FEWEST = 4  # rows of either kind


@dataclass(frozen=True)
class Behaviour:
    """The base model is fine-tuned twice by the study's recipe: on the rows of the queries' class alone, and on as many others.

    attack success: the share of queries whose greedy answer complies, as `complies` says (the task's own recogniser where not given).
    parameter distance: the mean over modules of `||scale B A||_F`, as the paper's, which left out the scale; relative: that of all modules
    together, over the norm of the weights that they change.
    projection: the cosine of the change of B (A as trained) with the gradient of a query's measure at the base: the mean over queries.
    Cost: two trainings; at each checkpoint a gradient and an answer for each of `queries`.
    """

    name = "behaviour"
    summary = "cause 3: attack success against parameter distance, breaking and ordinary data, with the projection (harmful tasks)"
    metrics = (
        *("attack success", "parameter distance", "relative parameter distance", "projection", "change of the measure"),
        *("difference of attack success", "ratio of attack success", "ratio of parameter distances", "difference of projection"),
    )
    reference = "Li et al. 2024, section 4.3 and table 5"

    complies: Complies | None = None
    queries: int = 20

    def unfit(self, world: World) -> str:
        if world.task.family != "harmful":
            return "only the tasks of harmful data have a behaviour that is forbidden"
        if world.model.task != "causal-lm":
            return "a classifier gives no answer that could comply"
        if self.complies is None and world.task.source != "made":
            return "nothing here can tell whether an answer to this data complies"
        n = min(map(len, rows_of(world).values()))
        return "" if n >= FEWEST else f"{n} rows of one kind: too few to fine-tune on"

    def __call__(self, world: World) -> Outcome:
        start, here = time.monotonic(), place(self, world)
        bench = Bench(world, list(world.queries[: self.queries]), self.complies or task_recogniser())
        courses = {kind: bench.course(kind, rows) for kind, rows in rows_of(world).items()}
        ends = Ends(courses[BREAKING][-1], courses[ORDINARY][-1])
        cells = [here.cell(TUNING, SUCCESS, rate(bench.at_base_Q), variant="data=none; epoch=0")]
        cells += [cell for kind, course in courses.items() for one in course for cell in one.cells(here, kind, world.measure.unit)]
        plots = [plot_distance(courses), plot_projection(courses)]
        facts = {"rows of each kind": min(map(len, rows_of(world).values()))}
        return Outcome([*cells, *ends.cells(here)], [ends.finding()], plots, time.monotonic() - start, facts)


def task_recogniser() -> Complies:
    from headwater.study.tasks.harmful import complies

    return complies


def rows_of(world: World) -> dict[str, list[Example]]:
    """As many rows of each kind: those of the queries' class, and others, drawn."""
    same_N = world.labels.same_QN.any(0)
    places = {BREAKING: np.flatnonzero(same_N), ORDINARY: np.flatnonzero(~same_N)}
    n, rng = min(map(len, places.values())), np.random.default_rng(world.seed)
    return {kind: [world.rows[i] for i in sorted(rng.permutation(of)[:n])] for kind, of in places.items()}


# ------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True, eq=False)
class At:
    """The model of one checkpoint."""

    epoch: float
    complies_Q: np.ndarray
    distance_M: np.ndarray
    relative: float
    cosine_Q: np.ndarray
    change_Q: np.ndarray

    @property
    def distance(self) -> float:
        return float(self.distance_M.mean())

    def cells(self, here: Place, kind: str, unit: str | None) -> Iterator[Cell]:
        variant = f"data={kind}; epoch={self.epoch:g}"
        modules = {"n": len(self.distance_M), "over": "modules"}
        yield here.cell(TUNING, SUCCESS, rate(self.complies_Q), variant=variant)
        yield here.cell(TUNING, DISTANCE, self.distance, variant=variant, **modules)
        yield here.cell(TUNING, RELATIVE, self.relative, variant=variant, **modules)
        yield here.cell(TUNING, PROJECTION, mean_figure(self.cosine_Q), variant=variant)
        yield here.cell(TUNING, CHANGE, mean_figure(self.change_Q), variant=variant, unit=unit)


def rate(complies_Q: np.ndarray) -> Figure:
    return proportion_figure(int(complies_Q.sum()), len(complies_Q))


@dataclass(frozen=True, eq=False)
class Bench:
    """The trainings are kept in the world's folder."""

    world: World
    queries: Sequence[Example]
    complies: Complies

    @cached_property
    def at_base_Q(self) -> np.ndarray:
        return self.answered(self.world.base_session)

    @cached_property
    def measure_at_base_Q(self) -> np.ndarray:
        return measured(self.world.base_session, self.world.measure, self.queries)

    def answered(self, session: Session) -> np.ndarray:
        """[Q] 1 where the greedy answer complies."""
        says = lambda text, query: float(self.complies(text))  # noqa: E731
        return shown(greedy_answers(session, self.queries), self.queries, tokenizer=session.tokenizer, behaves=says)

    def course(self, kind: str, rows: Sequence[Example]) -> list[At]:
        out, model = self.trained(kind, rows), self.world.model
        steps = -(-len(rows) // model.batch_rows)
        found = TrainerFolder.open(out).checkpoints
        return [self.at(load_session(one.path, task=model.task, dtype=model.dtype), one.step / steps) for one in found]

    def trained(self, kind: str, rows: Sequence[Example]) -> Path:
        world, out = self.world, self.world.folder / "behaviour" / kind
        if not (out / "done.json").exists():
            options = {"model": world.model, "base": world.base, "epochs": world.epochs, "checkpoints": world.size.checkpoints}
            make_trainer(rows, world.seed, out=str(out), **options).train()
            write_json(out / "done.json", {"rows": [row.id for row in rows]})
        return out

    def at(self, session: Session, epoch: float) -> At:
        move = Move.between(self.world.base_session, session)
        cosine_Q = slope(move, self.queries, self.world.measure, 0.0).cosine_Q
        change_Q = measured(session, self.world.measure, self.queries) - self.measure_at_base_Q
        return At(epoch, self.answered(session), module_norms(session), move.norm / move.base_norm, cosine_Q, change_Q)


@torch.no_grad()
def module_norms(session: Session) -> np.ndarray:
    """[M] `||scale B A||_F` of each module with an adapter."""
    layers = [cast(Any, module) for module in session.model.modules() if hasattr(module, "get_delta_weight")]
    return np.array([float(layer.get_delta_weight(name).double().norm()) for layer in layers for name in layer.active_adapters])


# --------------------------------------------------------------------------------------------------- what is said of it


@dataclass(frozen=True)
class Ends:
    """The two models at the end of their trainings."""

    breaking: At
    ordinary: At

    @property
    def success(self) -> Figure:
        return mean_figure(self.breaking.complies_Q - self.ordinary.complies_Q)

    @property
    def projection(self) -> Figure:
        return mean_figure(self.breaking.cosine_Q - self.ordinary.cosine_Q)

    @property
    def distances(self) -> float:
        return self.breaking.distance / self.ordinary.distance

    def cells(self, here: Place) -> Iterator[Cell]:
        ours, theirs = (float(one.complies_Q.mean()) for one in (self.breaking, self.ordinary))
        yield here.cell(BETWEEN, f"difference of {SUCCESS}", self.success)
        none = "no answer complies after training on ordinary data"
        yield (
            here.missing(BETWEEN, f"ratio of {SUCCESS}", none) if theirs == 0 else here.cell(BETWEEN, f"ratio of {SUCCESS}", ours / theirs)
        )
        yield here.cell(BETWEEN, f"ratio of {DISTANCE}s", self.distances)
        yield here.cell(BETWEEN, f"difference of {PROJECTION}", self.projection)

    def finding(self) -> Finding:
        """`warn` where the behaviour differs and the projection does not follow it; the ratio of norms is told beside it."""
        because = (
            f"Fine-tuning on rows that break the behaviour and on as many others: attack success {rate(self.breaking.complies_Q)} against "
            f"{rate(self.ordinary.complies_Q)}, a distance of the parameters {self.distances:.2g} times as large, a projection on the "
            f"behaviour's gradient of {mean_figure(self.breaking.cosine_Q)} against {mean_figure(self.ordinary.cosine_Q)} (difference "
            f"{self.projection}). The norm says how far, not which way; influence is a projection."
        )
        facts = {"value": self.projection.value, "interval": self.projection.interval, "n": self.projection.n}
        moved, follows = beyond(self.success, 0.0), beyond(self.projection, 0.0)
        if not moved:
            told = f"{because} Undetermined: the behaviour is not known to differ."
            return Finding("behaviour", "unknown", told, **facts, next_step="Train longer, or ask more queries.")
        if follows:
            return Finding("behaviour", "ok", f"{because} Here the projection follows the behaviour.", **facts)
        step = "Do not read a projection on the gradient at the base as a change of behaviour."
        return Finding("behaviour", "warn", f"{because} Here the projection does not follow the behaviour.", **facts, next_step=step)


def plot_distance(courses: Mapping[str, Sequence[At]]) -> Plot:
    drawn = [drawn_line(kind, [(one.distance, rate(one.complies_Q)) for one in course]) for kind, course in courses.items()]
    note = "A point for each checkpoint, in the order of training. Like distances with unlike answers: the norm does not say which way."
    return Plot("The behaviour against the distance of the parameters", DISTANCE, SUCCESS, drawn, note=note)


def plot_projection(courses: Mapping[str, Sequence[At]]) -> Plot:
    drawn = [drawn_line(kind, [(one.epoch, mean_figure(one.cosine_Q)) for one in course]) for kind, course in courses.items()]
    return Plot("Projection on the behaviour's gradient, along the epochs", "epoch", "cosine", drawn)
