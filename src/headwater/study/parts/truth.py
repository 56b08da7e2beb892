"""Ground truth that the paper had none of: the model trained again on halves of the rows, and without those that a method names.

D designs · S seeds · Q queries · N training rows · k rows removed
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.audit.check import Plot
from headwater.evaluate.agreement import FEWEST
from headwater.evaluate.classes import ClassLabels, accuracy
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.lds import noise_ceiling, paired_difference
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.two_way import two_way_figure
from headwater.study.cells import Cell, Place
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.settings import (
    CLASS_ALONE,
    EKFAC,
    EKFAC_CG,
    WORDS,
    Setting,
    bars,
    beyond,
    fisher,
    halves,
    joined,
    k_removed,
    lds_table,
    scores_or_why_not,
    setting,
    training_seeds,
)
from headwater.study.world import World
from headwater.truth.design import Designs, all_rows, without_random, without_top
from headwater.types import Finding, Scores, Truth, with_values

PLAIN = ("grad_dot", "grad_cos", "datainf", "tracin", "less", "trackstar", "trak", "rept", "dda", "repsim", "repsim_response",
         "length", "random")  # fmt: skip
SETTINGS = (*map(setting, PLAIN), WORDS, setting("tfidf", text="both"), fisher(0.1), fisher(100), *EKFAC, EKFAC_CG)
REMOVED = (setting("grad_cos"), fisher(100), setting("repsim"), WORDS)

CEILING, RANDOM, AGAIN = "noise ceiling", "random", "training again"
LDS, LESS, ACCURACY = "lds", "lds less same class", "accuracy"
CHANGE = "change when its first k are removed"
STANDARDISED, BEYOND = f"standardised {CHANGE}", f"{CHANGE}, less random"
WITHOUT_CLASS, SPREAD = "change when its class is left out", "spread over seeds"


@dataclass(frozen=True)
class Retraining:
    """Each method by both: whether its first row is of the query's class, and whether its scores say what training again says.

    LDS: Spearman's correlation, over random halves of the rows, of the sum of the scores of the kept rows with the measure after training
    on them. Removal: for the first queries, one of each class before a second of any, the first k rows of each method of `removed` are
    left out (k: the paper's c, at most a tenth of the rows), against as many random ones (`draws`) and against the whole class. A change
    is that of the query's measure from the training on all rows with the same seed; "standardised" is it less the random removals' mean,
    in standard deviations of the measure over `seeds` trainings on all rows.
    Cost: halves x retrainings, and removals x methods + classes + draws + seeds trainings.
    """

    name = "truth"
    summary = "training again on halves (LDS, with its ceiling) and without the first rows: the class beside the cause"
    metrics = (LDS, LESS, ACCURACY, CHANGE, STANDARDISED, BEYOND, WITHOUT_CLASS, SPREAD)
    reference = "Park et al. 2023, section 2; Basu et al. 2021"

    settings: tuple[Setting, ...] = SETTINGS
    removed: tuple[Setting, ...] = REMOVED
    seeds: int = 3
    draws: int = 3

    def unfit(self, world: World) -> str:
        return "" if world.size.halves >= FEWEST else f"{world.size.halves} halves: a correlation over designs needs {FEWEST}"

    def __call__(self, world: World) -> Outcome:
        start = time.monotonic()
        here, truth = place(self, world), halves(world)
        table = compared(world, self.settings, truth)
        removals = Removals.of(world, self)
        cells = [*table.cells(here), *removals.cells(here)]
        findings = [table.about_class(), *(finding(one, table, removals) for one in table.methods)]
        facts = {"k": removals.k, "rows": len(world.rows), "halves": len(truth.kept_DN), "retrainings": len(truth.seeds),
                 "removals": removals.trainings, "diverged": diverged(truth) + removals.diverged}  # fmt: skip
        return Outcome(cells, findings, [*table.plots(), *removals.plots()], time.monotonic() - start, facts)


def diverged(truth: Truth) -> int:
    return 0 if truth.diverged_DS is None else int(truth.diverged_DS.sum())


# ------------------------------------------------------------------------------------------------ class beside cause


@dataclass(frozen=True)
class Compared:
    """One method: accuracy is about the class, LDS about the cause. `less` is LDS less that of the class alone, paired."""

    tried: Setting
    accuracy: Figure
    lds: Figure
    less: Figure

    def class_is_right(self, chance: float) -> bool | None:
        """By Wilson's interval, against one half, or chance where that is more; None where the interval holds it."""
        return beyond(self.accuracy, max(0.5, chance))

    def cause(self, ceiling: float | None) -> Cause:
        """Against half of the ceiling, which noise lets anyone reach. `right`, `wrong`: the whole interval is above it, below it. `behind`:
        the interval holds it, and the class alone is known to have a higher LDS. Without a ceiling nothing is right, and wrong only what
        has no LDS above 0.
        """
        known = beyond(self.lds, 0.0 if ceiling is None else ceiling / 2)
        if known is None or (known and ceiling is None):
            return "behind" if beyond(self.less, 0.0) is False else "undetermined"
        return "right" if known else "wrong"


Cause = Literal["right", "behind", "wrong", "undetermined"]
TOLD: Mapping[Cause, str] = {
    "right": "right about the cause",
    "behind": "behind the class alone on the cause",
    "wrong": "wrong about the cause",
    "undetermined": "undetermined about the cause",
}


@dataclass(frozen=True)
class Comparison:
    methods: Sequence[Compared]
    failed: Sequence[tuple[Setting, str]]
    class_alone: Figure
    ceiling: Figure | None
    chance: float  # share of rows of a query's class, the mean over queries

    def cells(self, here: Place) -> Iterator[Cell]:
        yield here.cell(CLASS_ALONE, LDS, self.class_alone)
        one_seed = "one training seed for each half: nothing says how noisy an outcome is"
        yield here.missing(CEILING, LDS, one_seed) if self.ceiling is None else here.cell(CEILING, LDS, self.ceiling)
        for one in self.methods:
            for metric, figure in ((LDS, one.lds), (LESS, one.less), (ACCURACY, one.accuracy)):
                yield here.cell(one.tried.method, metric, figure, variant=one.tried.variant)
        for tried, because in self.failed:
            yield from (here.missing(tried.method, metric, because, variant=tried.variant) for metric in (LDS, LESS, ACCURACY))

    def about_class(self) -> Finding:
        """Whether the class is the cause at all: where it is not, accuracy is no evidence of influence."""
        figure, above = self.class_alone, beyond(self.class_alone, 0.0)
        reached = "" if self.ceiling is None else f"; noise lets anyone reach {self.ceiling}"
        told = {True: "The class says something of the cause", False: "The class says the reverse of the cause",
                None: "Undetermined: the class may say nothing of the cause"}[above]  # fmt: skip
        because = f"{told}: over the halves, how many rows of a query's class were kept has an LDS of {figure} with its measure{reached}."
        step = {True: None, False: "Do not read accuracy on this task as influence.", None: "More halves, or more queries."}[above]
        status = {True: "ok", False: "warn", None: "unknown"}[above]
        return Finding("truth: the class", status, because, figure.value, None, figure.interval, figure.n, step)  # pyright: ignore

    def plots(self) -> list[Plot]:
        ordered = sorted(self.methods, key=lambda one: -one.lds.value if math.isfinite(one.lds.value) else math.inf)
        names = [str(one.tried) for one in ordered]
        drawn = [bars("accuracy", names, [one.accuracy for one in ordered]), bars("LDS", names, [one.lds for one in ordered])]
        note = f"Knowing the class alone has an LDS of {self.class_alone}" + ("." if self.ceiling is None else f"; ceiling {self.ceiling}.")
        return [Plot("The class beside the cause", "method", "share; correlation", drawn, kind="bar", note=note)]


def compared(world: World, settings: Sequence[Setting], truth: Truth) -> Comparison:
    class_table = lds_table(world.by_class(), truth)
    methods, failed = [], []
    for tried in settings:
        scores = scores_or_why_not(world, tried)
        if isinstance(scores, str):
            failed.append((tried, scores))
            continue
        labels, table = world.labels_of(scores), lds_table(scores, truth)
        alone = class_table if tried.first is None else lds_table(with_values(scores, labels.same_QN.astype(float)), truth)
        figures = accuracy(Ranking(scores.values_QN), labels), two_way_figure(table, correlation=True), paired_difference(table, alone)
        methods.append(Compared(tried, *figures))
    chance = float(world.labels.same_QN.mean())
    return Comparison(methods, failed, two_way_figure(class_table, correlation=True), noise_ceiling(truth.outcomes_DSQ), chance)


def finding(one: Compared, table: Comparison, removals: Removals) -> Finding:
    """`warn` where accuracy and retraining contradict each other, `unknown` where an interval leaves either open."""
    of_class, cause = one.class_is_right(table.chance), one.cause(None if table.ceiling is None else table.ceiling.value)
    word = {True: "Right", False: "Wrong", None: "Undetermined"}[of_class]
    reached = "with one seed nobody knows what noise lets reach" if table.ceiling is None else f"noise lets reach {table.ceiling.value:.3g}"
    because = (
        f"{word} about the class (accuracy {one.accuracy}, chance {table.chance:.2g}), {TOLD[cause]} (LDS {one.lds}, {reached}; less that "
        f"of the class alone: {one.less}).{removals.told(one.tried)}"
    )
    facts = {"value": one.lds.value, "interval": one.lds.interval, "n": one.lds.n}
    if of_class is None or cause == "undetermined":
        return Finding(f"truth: {one.tried}", "unknown", because, **facts, next_step="More queries, or more halves.")
    if of_class == (cause == "right"):
        return Finding(f"truth: {one.tried}", "ok", because, **facts)
    step = "Do not read its accuracy as influence." if of_class else "Judge it by retraining: its accuracy says less than it knows."
    return Finding(f"truth: {one.tried}", "warn", because, **facts, next_step=step)


# ---------------------------------------------------------------------------------------------------------- removals


@dataclass(frozen=True, eq=False)
class Removals:
    """What became of some queries when rows were left out: `change_Q` by the name of a design, [Q] over all queries of the world."""

    world: World
    removed: Sequence[Setting]
    failed: Mapping[str, str]  # by method, why it has no scores
    asked: Sequence[int]
    k: int
    change_Q: Mapping[str, np.ndarray]
    spread_Q: np.ndarray  # standard deviation over trainings on all rows, each with its seed
    n_seeds: int
    trainings: int
    diverged: int

    @staticmethod
    def of(world: World, part: Retraining) -> Removals:
        n_rows, seeds = len(world.rows), training_seeds(world, part.seeds)
        asked, k = one_of_each(world.labels, world.size.removals), k_removed(world)
        found = {str(tried): scores_or_why_not(world, tried) for tried in part.removed}
        scores = {name: one for name, one in found.items() if not isinstance(one, str)}
        designs = all_rows(n_rows) + without_random(n_rows, k, draws=part.draws, seed=world.seed)
        designs = sum((*first_rows(scores, asked, k), *whole_classes(world.labels, asked)), designs)
        again = world.retrained("removals", all_rows(n_rows), seeds=seeds)
        truth = world.retrained("removals", designs, seeds=seeds[:1])
        outcome_DQ = truth.outcomes_DSQ[:, 0]
        return Removals(
            world, part.removed, {name: why for name, why in found.items() if isinstance(why, str)}, asked, k,
            dict(zip(truth.designs, outcome_DQ - outcome_DQ[0], strict=True)), again.outcomes_DSQ[0].std(axis=0, ddof=1), len(seeds),
            len(np.unique(truth.kept_DN, axis=0)) + len(seeds) - 1, diverged(truth) + diverged(again),
        )  # fmt: skip

    # ---------------------------------------------------------------------------------------------- what a query changed

    def by_method(self, tried: Setting, q: int) -> float:
        """NaN where the method ranks nothing for this query."""
        change_Q = self.change_Q.get(design_name(str(tried), self.k, q))
        return math.nan if change_Q is None else float(change_Q[q])

    def by_class(self, q: int) -> float:
        """NaN where all rows are of the query's class."""
        change_Q = self.change_Q.get(f"without-class/{self.world.labels.query_Q[q]}")
        return math.nan if change_Q is None else float(change_Q[q])

    def by_chance(self, q: int) -> np.ndarray:
        """[draws]"""
        return np.array([change_Q[q] for name, change_Q in self.change_Q.items() if name.startswith("random/")])

    def beyond_random(self, tried: Setting) -> Figure:
        """The mean over the queries of the change less that of random rows: below 0, the rows did more for the answer than chance."""
        return mean_figure(np.array([self.by_method(tried, q) - self.by_chance(q).mean() for q in self.asked]))

    def told(self, tried: Setting) -> str:
        if str(tried) not in map(str, self.removed) or str(tried) in self.failed:
            return ""
        unit = f" {self.unit}" if self.unit else ""
        return (
            f" Without its first {self.k} rows the measure changes by {self.beyond_random(tried)}{unit} beyond random removals "
            f"(without the whole class: {self.classes}; {len(self.asked)} queries)."
        )

    @property
    def classes(self) -> Figure:
        return mean_figure(np.array([self.by_class(q) for q in self.asked]))

    @property
    def unit(self) -> str | None:
        return self.world.measure.unit

    # ------------------------------------------------------------------------------------------------------------- cells

    def cells(self, here: Place) -> Iterator[Cell]:
        for q in self.asked:
            yield from self._of_query(here, q)
        for tried in self.removed:
            why_not = self.failed.get(str(tried), RANKS_NOTHING)
            yield self._cell(here, tried.method, BEYOND, self.beyond_random(tried), tried.variant, why_not)
        yield self._cell(here, CLASS_ALONE, WITHOUT_CLASS, self.classes, "", ONE_CLASS)

    def _of_query(self, here: Place, q: int) -> Iterator[Cell]:
        which = f"class={self.world.labels.query_Q[q]}; query={self.world.queries[q].id}"
        chance = mean_figure(self.by_chance(q), over="draws")
        yield self._cell(here, RANDOM, CHANGE, chance, which)
        yield self._cell(here, CLASS_ALONE, WITHOUT_CLASS, one_training(self.by_class(q)), which, ONE_CLASS)
        yield self._cell(here, AGAIN, SPREAD, Figure(float(self.spread_Q[q]), None, self.n_seeds, "seeds"), which)
        for tried in self.removed:
            change, variant = self.by_method(tried, q), joined(tried.variant, which)
            why_not, spread = self.failed.get(str(tried), RANKS_NOTHING), float(self.spread_Q[q])
            yield self._cell(here, tried.method, CHANGE, one_training(change), variant, why_not)
            standard = (change - chance.value) / spread if spread > 0 else math.nan
            yield here.cell(tried.method, STANDARDISED, one_training(standard), variant=variant, because="" if spread > 0 else NO_SPREAD)

    def _cell(self, here: Place, method: str, metric: str, figure: Figure, variant: str, because: str = "") -> Cell:
        """`because` is said where there is no number; a training that diverged is a reason of its own."""
        why = "" if math.isfinite(figure.value) else because or "a training diverged"
        return here.cell(method, metric, figure, variant=variant, unit=self.unit, because=why)

    def plots(self) -> list[Plot]:
        names = [*map(str, self.removed), "the whole class"]
        figures = [*map(self.beyond_random, self.removed), self.classes]
        note = f"Means over {len(self.asked)} queries. Methods: their first {self.k} rows, less random removals of as many."
        drawn = bars("change of the measure", names, figures)
        return [Plot("What goes away with the rows", "left out", self.unit or "the measure", [drawn], kind="bar", note=note)]


RANKS_NOTHING = "this method ranks nothing for the query"
ONE_CLASS = "every row is of the query's class: none is left to train on"
NO_SPREAD = "the measure does not differ from training to training"


def one_training(value: float) -> Figure:
    return Figure(value, None, 1, "trainings")


def one_of_each(labels: ClassLabels, n: int) -> list[int]:
    """The first n queries, one of each class before a second of any."""
    seen: dict[str, int] = {}
    turns = [seen[name] for name in labels.query_Q.tolist() if seen.update({name: seen.get(name, -1) + 1}) is None]
    return sorted(range(len(turns)), key=lambda q: (turns[q], q))[:n]


def first_rows(scores: Mapping[str, Scores], asked: Sequence[int], k: int) -> Iterator[Designs]:
    """Without the first k rows of each method for each query, where it ranks so many."""
    for name, one in scores.items():
        ranking = Ranking(one.values_QN)
        for q in asked:
            if ranking.usable_Q[q] and ranking.known_QN[q].sum() >= k:
                yield without_top(one.values_QN[q], k, label=f"{name}/{q}")


def design_name(method: str, k: int, q: int) -> str:
    """As `without_top` makes it."""
    return f"top/{k}/{method}/{q}"


def whole_classes(labels: ClassLabels, asked: Sequence[int]) -> Iterator[Designs]:
    for name in dict.fromkeys(labels.query_Q[list(asked)].tolist()):
        kept_N = labels.train_N != name
        if kept_N.any() and not kept_N.all():
            yield Designs((f"without-class/{name}",), kept_N[None])
