"""The paper's claims held against the cells: reproduced here, not reproduced here, undetermined, or not to be tested here.

A claim is asked in each setting (a task and a model, its seeds pooled) and answered yes, no, or neither, where an interval holds both. It
is reproduced where more than half of the settings say yes, not reproduced where at least half say no and fewer say yes, else undetermined.
Only the paper's own tasks count: on the planted ones the answer was built in. What is claimed of the class tables is asked twice: of
influence functions whose loss is on the response, as one would have it, and "as released", with the loss on prompt, response and padding.
Section numbers are those of Li et al. 2024 (arXiv:2409.19998, v2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.seeds import difference
from headwater.report.study_schema import options
from headwater.study.cells import Cell
from headwater.study.reading import ORACLE, Known, Reading, Setting, figure_of, listed, said

Verdict = Literal["reproduced", "not reproduced", "undetermined", "cannot be tested"]
Origin = Literal["paper", "implied", "planted"]

TASKS = ("harmful", "mixed", "emotion", "grammars", "math", "backdoor", "multibackdoor")
"""How the names of the paper's tasks begin."""
PLANTED = ("planted",)

HESSIAN_FREE, HESSIAN_BASED, REPSIM = "grad_dot", ("datainf", "lissa_released"), "repsim"
INFLUENCE = (HESSIAN_FREE, *HESSIAN_BASED)
"""What the paper evaluated as influence functions; its LiSSA is the released one."""
EXACT = "fisher"

NEAR = 0.95  # "near 100 %"
POOR = 0.5  # an accuracy below it is poor
FAIR = 0.7  # an accuracy above it is fairly good
MARGIN = 0.1  # two accuracies closer than this are the same for a reader
ALIKE = 2.0  # parameter distances within this factor of each other are alike
APART = 0.2  # attack success rates further apart than this are of different behaviour
REGIME = 0.1  # Theorem 1 needs eigenvalue / damping well below 1: below this it is, above 1 it is the opposite
LOW_RANK = 0.1  # rank over number of rows
SAME_ORDER = 0.99
HALF = 0.5  # of the ceiling
TOLD = 2  # settings whose numbers go into the sentence itself; more are in `votes`


@dataclass(frozen=True)
class Vote:
    """What one setting says: yes, no, or neither (None), with its numbers in words and the number that decides."""

    where: str
    holds: bool | None
    told: str
    cells: tuple[Cell, ...] = ()
    value: float | None = None


@dataclass(frozen=True)
class Claim:
    """`says` is the paper's claim with its section; `origin` is "implied" where the paper draws on it without stating it, and "planted" for
    a check that the study can tell, whose answer was built in."""

    name: str
    says: str
    verdict: Verdict
    because: str
    cells: tuple[Cell, ...] = ()
    votes: tuple[Vote, ...] = ()
    origin: Origin = "paper"

    def to_json(self) -> dict[str, Any]:
        names = ("task", "model", "seed", "part", "method", "metric", "variant", "value")
        told = {name: getattr(self, name) for name in ("name", "says", "origin", "verdict", "because")}
        votes = [{"where": vote.where, "holds": vote.holds, "told": vote.told} for vote in self.votes]
        return told | {"votes": votes, "cells": [{name: cell.to_json()[name] for name in names} for cell in self.cells]}


def claims(cells: Sequence[Cell]) -> list[Claim]:
    """Every claim, in the paper's order. Cost: one pass over the cells for each."""
    reading, planted = (Reading([cell for cell in cells if cell.task.lower().startswith(names)]) for names in (TASKS, PLANTED))
    return [*(claim(reading) for claim in CLAIMS), *(claim(planted) for claim in PLANTED_CLAIMS)]


# -------------------------------------------------------------------------------------------------- votes to verdict


def decided(
    name: str, says: str, votes: Sequence[Vote], *, missing: str, where: str = "settings", after: str = "", origin: Origin = "paper"
) -> Claim:
    """`missing` says which cells the claim needs, for where there is no vote at all."""
    if not votes:
        return Claim(name, says, "cannot be tested", missing, origin=origin)
    cells = tuple(dict.fromkeys(cell for vote in votes for cell in vote.cells))
    yes, no, open_ = (sum(vote.holds is side for vote in votes) for side in (True, False, None))
    where = where if len(votes) > 1 else where.removesuffix("s")
    counted = f"It holds in {yes} of {len(votes)} {where}, fails in {no}" + (f", and {open_} cannot tell." if open_ else ".")
    told = " ".join(f"{vote.where}: {vote.told}." for vote in votes) if len(votes) <= TOLD else extremes(votes)
    return Claim(name, says, majority(votes), " ".join(filter(None, (counted, told, after))), cells, tuple(votes), origin)


def extremes(votes: Sequence[Vote]) -> str:
    """The numbers of the two settings that lie furthest apart."""
    known = sorted((vote for vote in votes if vote.value is not None), key=lambda vote: vote.value or 0.0)
    return f"From {known[0].where}: {known[0].told}; to {known[-1].where}: {known[-1].told}." if len(known) > 1 else ""


def majority(votes: Sequence[Vote]) -> Verdict:
    """What holds in most settings is denied by half of them; a tie of yes and no alone is undetermined."""
    yes, no = (sum(vote.holds is side for vote in votes) for side in (True, False))
    if 2 * yes > len(votes):
        return "reproduced"
    return "not reproduced" if 2 * no >= len(votes) and no > yes else "undetermined"


def above(figure: Figure, level: float) -> bool | None:
    """Whether the whole interval is at the level or above it (True), or below it (False). Without an interval nothing is known."""
    if figure.interval is None:
        return None
    return True if figure.interval[0] >= level else False if figure.interval[1] < level else None


def inside(figure: Figure, margin: float) -> bool | None:
    """Whether the whole interval lies within -margin and margin (True), or outside of it (False)."""
    if figure.interval is None:
        return None
    low, high = figure.interval
    return True if -margin <= low and high <= margin else False if low > margin or high < -margin else None


def all_of(answers: Iterable[bool | None]) -> bool | None:
    found = list(answers)
    return False if False in found else None if None in found else True


def no(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def needs(reading: Reading, part: str, methods: Sequence[str], metric: str) -> str:
    """What is missing, with the reasons that its empty cells give."""
    reasons = reading.reasons(part, methods, metric)
    told = f" The empty cells say: {'; '.join(reasons[:3])}." if reasons else ""
    return f"No task of the paper's has the {metric} (part {part}) of {listed(methods)}.{told}"


# --------------------------------------------------------------------------------------------------- the class tables


def accuracies(reading: Reading, setting: Setting, methods: Sequence[str]) -> dict[str, Known]:
    found = {method: reading.known(setting, "tables", method, "accuracy") for method in methods}
    return {method: known for method, known in found.items() if known is not None}


def best(found: dict[str, Known]) -> tuple[str, Known]:
    return max(found.items(), key=lambda item: item[1].value)


def equal(reading: Reading, methods: Sequence[str]) -> list[Vote]:
    """In each setting: whether the accuracy of all these methods is that of the Hessian-free one, within the margin.

    Where that one is near 100 % an equality says nothing, whatever the method: the answer is open.
    """
    votes = []
    for setting in reading.settings:
        gaps = {method: reading.less(setting, "tables", method, HESSIAN_FREE, "accuracy") for method in methods}
        known = {method: gap for method, gap in gaps.items() if gap is not None}
        free = reading.known(setting, "tables", HESSIAN_FREE, "accuracy")
        if known and free:
            holds = all_of(inside(gap.figure, MARGIN) for gap in known.values())
            trivial = holds is True and free.value >= NEAR
            told = listed([f"{method} less {HESSIAN_FREE} {gap}" for method, gap in known.items()])
            told += f", but {HESSIAN_FREE} has {free}, where equality says nothing" if trivial else ""
            cells = tuple(cell for gap in known.values() for cell in gap.cells)
            largest = max((gap.value for gap in known.values()), key=abs)
            votes.append(Vote(str(setting), None if trivial else holds, told, cells, largest))
    return votes


def hessian_based_equals_hessian_free(reading: Reading) -> Claim:
    exact = equal(reading, (EXACT,))
    far = sum(vote.holds is False for vote in exact)
    contrast = (
        f"The exact damped Fisher matrix ({EXACT}) is further than that from {HESSIAN_FREE} in {far} of {len(exact)} settings: "
        + ("the equality is one of these approximations, not of the inverse." if far else "no contrast between it and them was found.")
        if exact
        else f"The exact damped Fisher matrix ({EXACT}) was not measured, so nothing says whether it is the approximations that are equal."
    )
    return decided(
        "Hessian-based equals Hessian-free",
        f"Hessian-based scores (DataInf, LiSSA) do as the plain gradient product does (section 3). Here: accuracies within {MARGIN:g}.",
        equal(reading, HESSIAN_BASED),
        missing=needs(reading, "tables", (HESSIAN_FREE, *HESSIAN_BASED), "accuracy"),
        after=contrast,
    )


def released_lissa_is_gradient_product(reading: Reading) -> Claim:
    """By the correlation of the scores themselves where it was measured, else by the accuracy."""
    votes = [vote for setting in reading.settings for vote in _correlated(reading, setting, "lissa_released")]
    return decided(
        "The released LiSSA is the gradient product",
        "LiSSA and the Hessian-free panels look the same (figure 2); in the released code the series never leaves the gradient. "
        f"Here: rows in the same order (rank correlation at least {SAME_ORDER:g}); where that is missing, accuracies within {MARGIN:g}.",
        votes or equal(reading, ("lissa_released",)),
        missing=needs(reading, "tables", (HESSIAN_FREE, "lissa_released"), "accuracy"),
    )


def _correlated(reading: Reading, setting: Setting, method: str) -> Iterator[Vote]:
    metric = "rank correlation to dot"
    if known := reading.known(setting, "solver", method, metric):
        yield Vote(str(setting), above(known.figure, SAME_ORDER), f"{metric} {known}", known.cells, known.value)


def repsim_near_100(reading: Reading) -> Claim:
    return decided(
        "RepSim near 100 %",
        f"RepSim has an accuracy near 100 % in most settings (section 3). Here: at least {NEAR:g}.",
        [_reaches(setting, known, NEAR) for setting, known in _each(reading, REPSIM)],
        missing=needs(reading, "tables", (REPSIM,), "accuracy"),
    )


def _each(reading: Reading, method: str) -> Iterator[tuple[Setting, Known]]:
    for setting in reading.settings:
        if known := reading.known(setting, "tables", method, "accuracy"):
            yield setting, known


def _reaches(setting: Setting, known: Known, level: float) -> Vote:
    return Vote(str(setting), above(known.figure, level), str(known), known.cells, known.value)


def influence_poor(reading: Reading) -> Claim:
    votes = []
    for setting in reading.settings:
        if found := accuracies(reading, setting, INFLUENCE):
            name, known = best(found)
            votes.append(Vote(str(setting), no(above(known.figure, POOR)), f"the best of them, {name}, {known}", known.cells, known.value))
    return decided(
        "Influence functions do poorly in most settings",
        f"Influence functions consistently perform poorly in most settings (abstract, section 3). Here: the best below {POOR:g}.",
        votes,
        missing=needs(reading, "tables", INFLUENCE, "accuracy"),
        after="One by one: " + "; ".join(_how_often_poor(reading)) + "." if votes else "",
    )


def _how_often_poor(reading: Reading) -> Iterator[str]:
    for method in INFLUENCE:
        if found := [known for _, known in _each(reading, method)]:
            poor = sum(above(known.figure, POOR) is False for known in found)
            yield f"{method} is below {POOR:g} in {poor} of {len(found)}, with a mean of {said(_mean(found))}"


def _mean(found: Sequence[Known]) -> Figure:
    return Figure(float(np.mean([known.value for known in found])), None, len(found), "settings")


def repsim_above_influence(reading: Reading) -> Claim:
    votes = []
    for setting in reading.settings:
        gaps = {method: reading.less(setting, "tables", REPSIM, method, "accuracy") for method in INFLUENCE}
        known = {method: gap for method, gap in gaps.items() if gap is not None}
        if known:
            name, least = min(known.items(), key=lambda item: item[1].value)
            votes.append(
                Vote(str(setting), above(least.figure, 0.0), f"RepSim less the best of them, {name}, {least}", least.cells, least.value)
            )
    return decided(
        "RepSim does better than influence functions",
        "RepSim finds the class where every influence function fails (section 3). Here: a higher accuracy than the best of them.",
        votes,
        missing=needs(reading, "tables", (REPSIM, *INFLUENCE), "accuracy"),
    )


# ------------------------------------------------------------------------------------------------- harder, and worse


def backdoor_triggers(task: str) -> int | None:
    """The number of triggers in a task's name: backdoor-3 and multibackdoor5; 1 for backdoor alone."""
    found = re.fullmatch(r"(multi)?backdoor[-_ ]?(\d+)?", task.lower())
    return None if found is None else int(found[2]) if found[2] else 3 if found[1] else 1


def harmful_size(task: str) -> int | None:
    """0, 1 or 2 for a task of harmful data of size S, M or L: the more, the smaller the share that is harmful."""
    found = re.fullmatch(r"(?:harmful|mixed)[-_ ]?([sml])", task.lower())
    return "sml".index(found[1]) if found else None


def falling(reading: Reading, place: Callable[[str], int | None]) -> list[Vote]:
    """For each model and influence function: whether its accuracy on the easiest of these tasks is above that on the hardest."""
    votes = []
    for model in dict.fromkeys(setting.model for setting in reading.settings):
        ladder = sorted((at, setting) for setting in reading.settings if setting.model == model and (at := place(setting.task)) is not None)
        for method in INFLUENCE:
            steps = [(setting.task, known) for _, setting in ladder if (known := reading.known(setting, "tables", method, "accuracy"))]
            if len(steps) > 1:
                fall = difference(steps[0][1].figure, steps[-1][1].figure)
                told = f"{listed([f'{task} {known.value:.2f}' for task, known in steps])}, a fall of {said(fall)}"
                holds = None if fall.interval is None else True if fall.interval[0] > 0 else False if fall.interval[1] < MARGIN else None
                votes.append(
                    Vote(f"{method} ({model})", holds, told, tuple(cell for _, known in steps for cell in known.cells), fall.value)
                )
    return votes


def falls_with_triggers(reading: Reading) -> Claim:
    return decided(
        "Accuracy falls with the number of triggers",
        "The accuracy of influence functions falls markedly with more kinds of trigger, 1, 3 and 5 (section 3.3). "
        f"Here: lower with the most than with the fewest; no fall is one that is surely below {MARGIN:g}.",
        falling(reading, backdoor_triggers),
        where="methods",
        missing=f"It needs the accuracy of {listed(INFLUENCE)} on two tasks with different numbers of triggers (backdoor-1, -3, -5).",
    )


def falls_with_share(reading: Reading) -> Claim:
    return decided(
        "Accuracy falls with the share of harmful rows",
        "The accuracy of influence functions falls as the share of harmful rows falls, from S to L (section 3.1). "
        f"Here: lower at the smallest share than at the largest; no fall is one that is surely below {MARGIN:g}.",
        falling(reading, harmful_size),
        where="methods",
        missing=f"It needs the accuracy of {listed(INFLUENCE)} on two tasks of harmful data of different sizes (harmful-S, -M, -L).",
    )


def single_trigger(reading: Reading) -> Claim:
    votes = []
    for setting in reading.settings:
        if backdoor_triggers(setting.task) == 1 and (found := accuracies(reading, setting, INFLUENCE)):
            name, known = best(found)
            votes.append(Vote(str(setting), above(known.figure, FAIR), f"the best of them, {name}, {known}", known.cells, known.value))
    return decided(
        "With a single trigger influence functions do fairly well",
        f"With one kind of trigger influence functions do fairly well (section 3.3). Here: the best at least {FAIR:g}.",
        votes,
        missing=f"It needs the accuracy of {listed(INFLUENCE)} on a task with one trigger (backdoor-1).",
    )


# ---------------------------------------------------------------------------------------------------- the three causes


def low_rank(reading: Reading) -> Claim:
    return decided(
        "The curvature has a low rank",
        "After fine-tuning with LoRA the Hessian's rank is far below the number of rows (section 4.1). "
        f"Here: a rank of at most {LOW_RANK:g} of the rows.",
        list(_by_metric(reading, lambda m: "rank" in m.lower() and ("share" in m or "over" in m), below=LOW_RANK, surely_not=HALF)),
        missing="No part solver left a rank over the number of rows.",
    )


def theorem_regime(reading: Reading) -> Claim:
    return decided(
        "Theorem 1's regime",
        "(H + λI)⁻¹ is nearly I/λ, with an error of about ‖H‖/λ² (section 4.1, theorem 1): this says something only where the eigenvalues "
        f"are far below the damping. Here: mean eigenvalue over damping below {REGIME:g}; above 1 it is the opposite regime.",
        list(_by_metric(reading, lambda m: "eigenvalue" in m.lower() and "damping" in m.lower(), below=REGIME, surely_not=1.0)),
        missing="No part solver left a mean eigenvalue over damping.",
    )


def _by_metric(reading: Reading, fits: Callable[[str], bool], *, below: float, surely_not: float) -> Iterator[Vote]:
    """One vote a setting, by the first such number: a number of the model and rows, not of a sample of queries, so it needs no interval."""
    for setting in reading.settings:
        for way, metric in reading.find(setting, "solver", fits)[:1]:
            known = reading.known(setting, "solver", way.method, metric, way.variant)
            if known is not None:
                holds = True if known.value < below else False if known.value > surely_not else None
                yield Vote(str(setting), holds, f"{metric} {known}, {way}", known.cells, known.value)


def unstable_over_epochs(reading: Reading) -> Claim:
    """The mean size of the steps between neighbouring epochs, of influence functions less that of RepSim: one number a run."""
    runs = list(_runs(reading))
    name, says = "Influence functions are unstable over the epochs, RepSim is stable", (
        "Along fine-tuning the accuracy of influence functions is poor and unstable, that of RepSim stable (section 4.2). "
        "Here: it moves further from epoch to epoch than RepSim's, over all runs."
    )  # fmt: skip
    if not runs:
        return Claim(name, says, "cannot be tested", needs(reading, "epochs", (*INFLUENCE, REPSIM), "accuracy") + " Two epochs are needed.")
    theirs, repsim = (mean_figure(np.array(step), over="runs") for step in ([run[0] for run in runs], [run[1] for run in runs]))
    excess = mean_figure(np.array([run[0] - run[1] for run in runs]), over="runs")
    because = (
        f"Over {len(runs)} run{'s' if len(runs) > 1 else ''} the accuracy moves from one epoch to the next by {said(theirs)} for influence "
        f"functions and {said(repsim)} for RepSim: {said(excess)} more."
    )
    verdict: Verdict = "undetermined"
    if excess.interval is None:
        because += " One run gives no interval."
    elif excess.interval[0] > 0:
        verdict = "reproduced"
    elif excess.interval[1] <= 0 or inside(excess, MARGIN / 2):
        verdict = "not reproduced"
    return Claim(name, says, verdict, because, tuple(cell for run in runs for cell in run[2]))


def _runs(reading: Reading) -> Iterator[tuple[float, float, tuple[Cell, ...]]]:
    """For each run (a setting with a seed): mean step of the influence functions, of RepSim, and the cells."""
    chosen = [cell for cell in reading.cells if cell.part == "epochs" and cell.metric == "accuracy" and cell.value is not None]
    for task, model, seed in dict.fromkeys((cell.task, cell.model, cell.seed) for cell in chosen):
        here = [cell for cell in chosen if (cell.task, cell.model, cell.seed) == (task, model, seed)]
        steps = {name: _step([cell for cell in here if cell.method == name]) for name in (*INFLUENCE, REPSIM)}
        theirs = [steps[name] for name in INFLUENCE if steps[name] is not None]
        ours = steps[REPSIM]
        if theirs and ours is not None:
            cells = tuple(cell for cell in here if cell.method in steps)
            yield sum(step for step in theirs if step is not None) / len(theirs), ours, cells


def _step(cells: Sequence[Cell]) -> float | None:
    """Mean absolute change between neighbouring epochs; None with fewer than two."""
    ordered = [cell.value for cell in sorted(cells, key=_epoch) if cell.value is not None and math.isfinite(_epoch(cell))]
    return sum(abs(b - a) for a, b in pairwise(ordered)) / (len(ordered) - 1) if len(ordered) > 1 else None


def _epoch(cell: Cell) -> float:
    try:
        return float(options(cell.variant).get("epoch", "nan"))
    except ValueError:
        return math.nan


def distance_does_not_track(reading: Reading) -> Claim:
    votes = [vote for setting in reading.settings for vote in _after_training(reading, setting)]
    return decided(
        "Parameter distance does not track behaviour",
        "Fine-tuning that breaks the behaviour and fine-tuning that does not move the parameters about as far (section 4.3, table 5). "
        f"Here: attack success further apart than {APART:g}, parameter distances within a factor of {ALIKE:g}.",
        votes,
        where="runs",
        missing="It needs the attack success and the parameter distance after fine-tuning on breaking and on other data (part behaviour).",
    )


def _after_training(reading: Reading, setting: Setting) -> Iterator[Vote]:
    """One vote a seed: breaking against each other data set, at the last epoch of each."""
    cells = [cell for cell in reading.cells if (cell.task, cell.model) == setting and cell.part == "behaviour" and cell.value is not None]
    for seed in dict.fromkeys(cell.seed for cell in cells):
        success, distance = (_last(cells, seed, metric) for metric in ("attack success", "parameter distance"))
        names = [name for name in success if name in distance]
        for other in [name for name in names if name != "breaking"] if "breaking" in names else []:
            here = [cell for cell in cells if cell.seed == seed]
            yield _apart(here, f"{setting}, seed {seed}", other, success, distance)


def _last(cells: Sequence[Cell], seed: int, metric: str) -> dict[str, Cell]:
    """{data: the cell of its last epoch}."""
    found = [cell for cell in cells if cell.seed == seed and cell.metric == metric and "data" in options(cell.variant)]
    return {options(cell.variant)["data"]: cell for cell in sorted(found, key=_epoch)}


def _apart(cells: Sequence[Cell], where: str, other: str, success: dict[str, Cell], distance: dict[str, Cell]) -> Vote:
    """`cells` are those of the run: the paired difference of the attack success, and that of the projection, where a part left them."""
    paired = {cell.metric: cell for cell in cells if cell.method == f"breaking against {other}"}
    whole = paired.get("difference of attack success")
    gap = figure_of(whole) if whole else difference(figure_of(success["breaking"]), figure_of(success[other]))
    far, near = distance["breaking"].value or 0.0, distance[other].value or 0.0
    ratio = far / near if near > 0 else math.inf
    holds = 1 / ALIKE <= ratio <= ALIKE if above(gap, APART) else None
    projection = paired.get("difference of projection")
    told = f"attack success {said(gap)} higher after breaking than after {other} data, at {ratio:.3g} times the distance"
    beside = f", projection on the behaviour's gradient {said(figure_of(projection))} higher" if projection else ""
    used = (success["breaking"], success[other], distance["breaking"], distance[other], whole, projection)
    return Vote(where, holds, told + beside, tuple(cell for cell in used if cell), ratio)


# ------------------------------------------------------------------------------------------------------- the cause


def repsim_finds_the_cause(reading: Reading) -> Claim:
    votes = []
    for setting in reading.settings:
        known = reading.known(setting, "truth", REPSIM, "lds")
        ceiling = ceiling_of(reading, setting)
        if known is None or ceiling is None:
            continue
        beside = reading.less(setting, "truth", REPSIM, ORACLE, "lds")
        enough = above(known.figure, HALF * ceiling.value)
        not_below = None if beside is None else above(beside.figure, 0.0) is not False
        told = f"LDS {known}, ceiling {ceiling}" + ("" if beside is None else f", less that of the class alone {beside}")
        cells = (*known.cells, *ceiling.cells, *(() if beside is None else beside.cells))
        votes.append(Vote(str(setting), all_of([enough, not_below]), told, cells, known.value))
    return decided(
        "RepSim finds the cause",
        "RepSim's accuracy is taken as evidence that it attributes (sections 3 and 5); the paper did not remove a row. "
        f"Here: an LDS of at least {HALF:g} of the ceiling, and not below that of the class alone.",
        votes,
        missing=needs(reading, "truth", (REPSIM,), "lds") + " The noise ceiling is needed as well.",
        origin="implied",
    )


def ceiling_of(reading: Reading, setting: Setting) -> Known | None:
    """What noise lets any method reach."""
    places = (("noise ceiling", "lds"), ("ceiling", "lds"), ("noise ceiling", "ceiling"), ("ceiling", "ceiling"))
    return next((known for name, metric in places if (known := reading.known(setting, "truth", name, metric))), None)


# ------------------------------------------------------------------------------------------------------ planted checks

BY_GRADIENT = ("grad_cos", "grad_dot", "datainf", "fisher", "ekfac", "less")


def planted(task: str, name: str, says: str, *, gradients_win: bool) -> Callable[[Reading], Claim]:
    """Whether a planted task came out as it was built: the best of one side right for most queries, the best of the other for few."""

    def claim(reading: Reading) -> Claim:
        votes = []
        for setting in (one for one in reading.settings if one.task == task):
            sides = [accuracies(reading, setting, methods) for methods in (BY_GRADIENT, (REPSIM,))]
            if all(sides):
                (winner, won), (loser, lost) = map(best, sides if gradients_win else reversed(sides))
                holds = all_of([above(won.figure, FAIR), no(above(lost.figure, POOR))])
                votes.append(Vote(str(setting), holds, f"{winner} {won}, {loser} {lost}", (*won.cells, *lost.cells), won.value))
        missing = f"It needs the accuracy of {listed(BY_GRADIENT)} and {REPSIM} on {task}."
        return decided(name, f"{says} Here: at least {FAIR:g} against below {POOR:g}.", votes, missing=missing, origin="planted")

    return claim


PLANTED_CLAIMS = (
    planted(
        "planted-effect", "The study can tell influence from likeness",
        "Where the cause shares the query's effect and no word of its prompt, the best gradient method is right and RepSim is not.",
        gradients_win=True,
    ),
    planted(
        "planted-words", "The study can tell likeness from influence",
        "Where rows share the query's words and the model learned nothing from them, RepSim is right and the best gradient method is not.",
        gradients_win=False,
    ),
)  # fmt: skip


# --------------------------------------------------------------------------------------------- at the released code's point

RELEASED = "mask=none; score=dot; layers=sum"
"""The released code's choices, as cells of the ablation have them: the loss counts prompt, response and padding on the left."""
RELEASED_METHODS = {"none": HESSIAN_FREE, "datainf": "datainf"}


def as_released(asked: Callable[[Reading], Claim]) -> Callable[[Reading], Claim]:
    """The same claim of the influence functions as the released code has them, in place of those whose loss is on the response alone."""

    def claim(reading: Reading) -> Claim:
        found = asked(Reading([cell for one in reading.cells for cell in _released(one)]))
        missing = "No part ablation left the accuracy at the released code's choices."
        return replace(
            found,
            name=f"{found.name} (as released)",
            says=f"{found.says} With the loss on everything, padding too, as in the released code.",
            because=found.because if found.cells else missing,
        )

    return claim


def _released(cell: Cell) -> Iterator[Cell]:
    """The cell as one of the tables: of an influence function at the released point, of its paired difference, of RepSim."""
    if cell.part == "ablation" and cell.variant == RELEASED and cell.method in RELEASED_METHODS:
        yield replace(cell, part="tables", method=RELEASED_METHODS[cell.method], variant="")
    is_paired = cell.variant == "preconditioner=datainf" and cell.metric == "accuracy change (one mended)"
    if cell.part == "ablation" and cell.method == "explained" and is_paired:
        yield replace(cell, part="tables", method="datainf", metric=f"accuracy less {HESSIAN_FREE}", variant="")
    if cell.part == "tables" and cell.method == REPSIM and cell.metric == "accuracy":
        yield cell


CLAIMS: tuple[Callable[[Reading], Claim], ...] = (
    influence_poor, as_released(influence_poor), repsim_near_100, repsim_above_influence, as_released(repsim_above_influence),
    hessian_based_equals_hessian_free, as_released(hessian_based_equals_hessian_free), released_lissa_is_gradient_product,
    falls_with_share, as_released(falls_with_share), falls_with_triggers, as_released(falls_with_triggers), single_trigger,
    as_released(single_trigger), low_rank, theorem_regime, unstable_over_epochs, distance_does_not_track, repsim_finds_the_cause,
)  # fmt: skip
