"""Removal: does the behaviour go with the rows that are named for it, further than with random ones, and than with BM25's and RepSim's?

D designs · S seeds · Q queries · N training rows
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from pydantic import ValidationError

from headwater.atomic import read_json, write_json
from headwater.audit.behaviour import can_answer, greedy_answers, shown
from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.subject import Subject
from headwater.evaluate.lds import direction
from headwater.evaluate.removal import APART, FEWEST_SEEDS, Pick, Point, curve, separation
from headwater.model.session import Session
from headwater.rank.topk import proponents
from headwater.truth.bank import ABOUT, read_bank
from headwater.truth.design import Designs, all_rows, without_random
from headwater.truth.finetune import Recipe
from headwater.truth.retrain import ByRecipe, Experiment, Start, retrain
from headwater.truth.trained import lora_of
from headwater.types import Example, Finding, HeadwaterError, Truth, UsageError

ANSWERS = "answers"
CONTROLS = {"lexical": "BM25", "repsim": "RepSim"}
ALIKE = 0.1  # of the named groups' effect: however sure, a smaller difference is none
RARE = 0.1  # share of answers: a behaviour that is rarer with all rows cannot go away with some


@dataclass(frozen=True)
class Removal:
    """Train without each query's named group, and without random, BM25's and RepSim's groups of as many rows: what becomes of the query?

    A bank in RUN/truth that has these groups is read. Else the model is trained again from its base, by its recipe: `designs` x `seeds`
    trainings into RUN/truth/audit-removal-TRACE, where what is done is kept. `queries` of the trace, evenly spread, have a training of
    their own for each method; `draws` random groups are all queries'. Fewer than 5 seeds tell nothing apart.

    A difference counts where it is 2 standard errors from 0, over seeds and draws, and twice as large as a training's own noise
    (Basu et al. 2021: below that a retrained effect is chance). Behaviour is the greedy answer: the query's response to the last token,
    or what `behaves` says of it.
    """

    name: ClassVar[str] = "removal"
    summary: ClassVar[str] = "retraining without the named rows against random, BM25's and RepSim's, on measure and generated behaviour"
    reference: ClassVar[str] = "Li et al. 2024, section 4.3; Han et al. 2020, section 6; Basu et al. 2021"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    seeds: int = FEWEST_SEEDS
    draws: int = 4
    queries: int = 4

    def passes(self, subject: Subject) -> float:
        if known_bank(subject) is not None:
            return 0.0
        try:
            return len(self.designs(subject)) * self.seeds * self.training(subject).recipe.epochs
        except HeadwaterError:
            return 0.0  # it will say so

    def __call__(self, subject: Subject) -> Report:
        try:
            folder = known_bank(subject) or self.retrained(subject)
        except UsageError as error:
            return Report([Finding(f"removal: {what}", "unknown", f"Not measured: {error}", next_step=WAY_OUT) for what in TOLD])
        return report(subject, folder)

    # ------------------------------------------------------------------------------------------------- training again

    def training(self, subject: Subject) -> ByRecipe:
        if subject.base is None:
            raise UsageError("the model before training is not known, and no bank of removals is in the run.")
        given = dict(subject.training)
        adapter = subject.session.adapter
        if adapter is not None and not given.get("lora"):
            given["lora"] = getattr(lora_of(adapter), "model_dump", dict)() or None
        try:
            return ByRecipe(lambda: subject.base_session, Recipe.model_validate(given))
        except ValidationError as error:
            wrong = ", ".join(sorted({".".join(map(str, one["loc"])) for one in error.errors()}))
            raise UsageError(f"how the model was trained is not known ({wrong}), and no bank of removals is in the run.") from None

    def chosen(self, subject: Subject) -> list[int]:
        """Queries that have a named group, evenly spread over the trace."""
        asked = [q for q, group in enumerate(subject.group_QK) if len(group)]
        spread = np.linspace(0, len(asked) - 1, min(self.queries, len(asked))).round().astype(int)
        return [asked[i] for i in dict.fromkeys(spread.tolist())]

    def designs(self, subject: Subject) -> Designs:
        """All rows, random groups, and each chosen query's groups; one that two methods share is trained once."""
        n_rows, ids = len(subject.rows), subject.scores.query_ids
        made = all_rows(n_rows) + without_random(n_rows, subject.asked.k, draws=self.draws, seed=subject.seed)
        known = {kept_N.tobytes() for kept_N in made.kept_DN}
        for method, groups in groups_of(subject, subject.asked.k).items():
            for q in self.chosen(subject):
                kept_N = ~np.isin(np.arange(n_rows), groups[q])
                if kept_N.tobytes() not in known:
                    made = made + Designs((f"top/{len(groups[q])}/{method}/{ids[q]}",), kept_N[None])
                    known.add(kept_N.tobytes())
        return made

    def retrained(self, subject: Subject) -> Path:
        """The bank's folder."""
        folder = subject.stored.run / "truth" / f"audit-removal-{subject.asked.record.get('name', 'trace')}"
        queries = [subject.asked.queries[q] for q in self.chosen(subject)]
        if not queries:
            raise UsageError("no query of the trace has a named group: no row has a positive score.")
        training = self.training(subject)
        if not can_answer(training.origin):
            raise UsageError(f"{training.origin.name} is a classifier, which no recipe trains.")
        experiment = Experiment(Answering(training, queries, folder), subject.rows, queries, subject.asked.measure)
        retrain(folder, experiment, self.designs(subject), seeds=range(self.seeds), threads=torch.get_num_threads())
        return folder


TOLD = ("measure", "behaviour")
WAY_OUT = (
    "Say what the model was trained from and how (--base MODEL --recipe FILE), or write a bank of removals with `headwater truth`: the "
    "designs all, top and random."
)


@dataclass(frozen=True, eq=False)
class Answering:
    """A training that also keeps what the trained model answers to each query: one small file a training, written before its outcome."""

    training: ByRecipe
    queries: Sequence[Example]
    folder: Path

    @property
    def start(self) -> Start:
        return self.training.start

    def describe(self) -> dict[str, Any]:
        return self.training.describe()

    def __call__(self, rows: Sequence[Example], seed: int) -> Session:
        session = self.training(rows, seed)
        path = answers_path(self.folder, [row.id for row in rows], seed)
        write_json(path, {query.id: answer for query, answer in zip(self.queries, greedy_answers(session, self.queries), strict=True)})
        return session


def answers_path(folder: Path, row_ids: Sequence[str], seed: int) -> Path:
    return folder / ANSWERS / f"{xxhash.xxh3_64_hexdigest(' '.join(row_ids).encode())}-{seed}.json"


# ------------------------------------------------------------------------------------------------ groups and banks


def groups_of(subject: Subject, k: int) -> dict[str, list[np.ndarray]]:
    """By method, the named group of each query and the first rows of each control, as many as the named group has."""
    primary, scores = subject.asked.primary, subject.asked.scores
    named = [proponents(values_N, k) for values_N in subject.scores.values_QN]
    controls = [name for name in CONTROLS if name in scores and name != primary]
    return {primary: named} | {
        name: [proponents(values_N, len(group)) for values_N, group in zip(scores[name].values_QN, named, strict=True)] for name in controls
    }


def known_bank(subject: Subject) -> Path | None:
    """The bank in RUN/truth with the most trainings of named groups of this trace, beside random ones and all rows."""
    banks = [about.parent for about in sorted((subject.stored.run / "truth").glob(f"*/{ABOUT}"))]
    found = [(outcomes.n_trainings, folder) for folder in banks if (outcomes := read_outcomes(subject, folder)) is not None]
    return max(found, key=lambda one: one[0])[1] if found else None


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A bank's trainings, by what they are for the trace's queries: `without[method]` [D, Q] leave out that query's group."""

    truth: Truth
    k: int
    place_Q: list[int]  # of the bank's queries in the trace
    all_D: np.ndarray
    random_D: np.ndarray
    without: Mapping[str, np.ndarray]

    @property
    def n_trainings(self) -> int:
        return int(next(iter(self.without.values())).any(1).sum()) * len(self.truth.seeds)

    def points(self, method: str, outcomes_DSQ: np.ndarray) -> list[Point]:
        """The removal curve of one method's groups, over the queries that have one."""
        mask_DQ = self.without[method]
        asked_Q = mask_DQ.any(0)
        shared = {("none", 0): self.all_D[:, None] & asked_Q, ("random", self.k): self.random_D[:, None] & asked_Q}
        found: dict[tuple[Pick, int], np.ndarray] = {**shared, ("most", self.k): mask_DQ}  # pyright: ignore[reportAssignmentType]
        return curve(found, replace(self.truth, outcomes_DSQ=outcomes_DSQ))

    def effects(self, outcomes_DSQ: np.ndarray) -> dict[str, np.ndarray]:
        """[S, Q] by method: how much further down than without random rows."""
        random_SQ = _mean(outcomes_DSQ, self.random_D[:, None].repeat(len(self.place_Q), 1))
        return {method: random_SQ - _mean(outcomes_DSQ, mask_DQ) for method, mask_DQ in self.without.items()}


def read_outcomes(subject: Subject, folder: Path) -> Outcomes | None:
    """None where the bank is of other rows, queries or another measure, or has none of the trace's named groups."""
    truth, scores = read_bank(folder), subject.scores
    shared = [q for q, query_id in enumerate(truth.query_ids) if query_id in scores.query_ids]
    measure = truth.recipe.get("measure", {}).get("name", subject.asked.measure.name)
    removed = truth.kind != "tail_patch" and direction(truth) > 0
    if not (removed and shared and set(truth.train_ids) == set(scores.train_ids) and measure == subject.asked.measure.name):
        return None
    place = {row_id: n for n, row_id in enumerate(truth.train_ids)}
    gone_DN = ~truth.kept_DN[:, [place[row_id] for row_id in scores.train_ids]]
    trace_Q = [scores.query_ids.index(truth.query_ids[q]) for q in shared]
    narrowed = replace(truth, outcomes_DSQ=truth.outcomes_DSQ[..., shared], query_ids=tuple(truth.query_ids[q] for q in shared))
    random_D = np.array([name.startswith("random/") for name in truth.designs], dtype=bool)
    sizes_D, wanted = gone_DN.sum(1), subject.asked.k
    for k in sorted(set(sizes_D[random_D].tolist()), key=lambda k: abs(k - wanted)):
        groups = groups_of(subject, k)
        without = {method: _leaving_out([sets[q] for q in trace_Q], gone_DN) for method, sets in groups.items()}
        if without[subject.asked.primary].any() and (sizes_D == 0).any():
            return Outcomes(narrowed, k, trace_Q, sizes_D == 0, random_D & (sizes_D == k), without)
    return None


def _leaving_out(groups: Sequence[np.ndarray], gone_DN: np.ndarray) -> np.ndarray:
    """[D, Q] whether design d leaves out exactly query q's group."""
    sets_QN = np.stack([np.isin(np.arange(gone_DN.shape[1]), group) for group in groups])
    return (gone_DN[:, None] == sets_QN[None]).all(-1) & sets_QN.any(1)


# ------------------------------------------------------------------------------------------------- what is said of it


def report(subject: Subject, folder: Path) -> Report:
    outcomes = read_outcomes(subject, folder)
    assert outcomes is not None, "the bank was chosen, or made, for this trace"
    told = Told(subject, outcomes, folder)
    return Report([told.measure, told.behaviour], evidence(subject, outcomes), told.plots)


def evidence(subject: Subject, outcomes: Outcomes) -> dict[str, np.ndarray]:
    """Of each query, how much further it falls than without random rows, and what that may be by chance.

    The error is the standard error over seeds and draws, or one training's own noise where that is larger: what is under twice a seed's
    noise is no effect (Basu et al. 2021).
    """
    outcomes_DSQ = outcomes.truth.outcomes_DSQ
    effect_SQ = outcomes.effects(outcomes_DSQ)[subject.asked.primary]
    n_S = np.isfinite(effect_SQ).sum(0)
    known = n_S >= FEWEST_SEEDS
    draws_RQ = np.nanmean(outcomes_DSQ[outcomes.random_D], axis=1)
    found = {name: np.full(len(subject.scores.query_ids), np.nan) for name in ("removal", "removal_error")}
    for q in np.flatnonzero(known):
        noise = float(np.nanstd(effect_SQ[:, q], ddof=1))
        spread = float(draws_RQ[:, q].var(ddof=1)) / len(draws_RQ) if len(draws_RQ) > 1 else 0.0
        found["removal"][outcomes.place_Q[q]] = np.nanmean(effect_SQ[:, q])
        found["removal_error"][outcomes.place_Q[q]] = max(noise, math.sqrt(noise**2 / n_S[q] + spread))
    return found


@dataclass(frozen=True, eq=False)
class Told:
    subject: Subject
    outcomes: Outcomes
    folder: Path

    @cached_property
    def measure(self) -> Finding:
        return self.finding("measure", self.outcomes.truth.outcomes_DSQ, self.subject.asked.measure.unit)

    @cached_property
    def behaviour(self) -> Finding:
        shown_DSQ = self.shown_DSQ
        if not np.isfinite(shown_DSQ).any():
            why = f"Not measured: {self.folder.name} is a bank of measures, and what its models answered was not kept."
            return Finding("removal: behaviour", "unknown", why, next_step="Move the bank away, and this check retrains and asks.")
        before = float(np.nanmean(shown_DSQ[self.outcomes.all_D]))
        if before < RARE:
            why = f"Trained on all rows, the model answers with the behaviour in {before:.0%} of the cases: too rarely for it to go away."
            return Finding(
                "removal: behaviour", "unknown", why, next_step="Say what shows the behaviour: behaves=, a function of the text."
            )
        return self.finding("behaviour", shown_DSQ, "share of answers")

    @cached_property
    def shown_DSQ(self) -> np.ndarray:
        """Whether the answer showed the behaviour; NaN where no answer was kept."""
        truth, subject = self.outcomes.truth, self.subject
        queries = [subject.asked.queries[q] for q in self.outcomes.place_Q]
        values_DSQ = np.full(truth.outcomes_DSQ.shape, np.nan)
        for d, kept_N in enumerate(truth.kept_DN):
            ids = [truth.train_ids[n] for n in np.flatnonzero(kept_N)]
            for s, seed in enumerate(truth.seeds):
                path = answers_path(self.folder, ids, seed)
                if path.exists():
                    answers = read_json(path, way_out="Remove the folder to train again.")
                    said = [answers[query.id] for query in queries]
                    values_DSQ[d, s] = shown(said, queries, tokenizer=subject.session.tokenizer, behaves=subject.behaves)
        return values_DSQ

    def finding(self, what: str, outcomes_DSQ: np.ndarray, unit: str | None) -> Finding:
        """That of `separation`, `unknown` where the difference is under twice its own spread over seeds."""
        primary, k = self.subject.asked.primary, self.outcomes.k
        points = self.outcomes.points(primary, outcomes_DSQ)
        (found,) = separation(points)
        by_pick = {point.pick: point for point in points}
        if found.value is None or "random" not in by_pick:
            return replace(found, name=f"removal: {what}")
        effects = self.outcomes.effects(outcomes_DSQ)
        most, random = by_pick["most"], by_pick["random"]
        noise = float(np.nanstd(most.change_S - random.change_S, ddof=1))
        quiet = abs(found.value) <= APART * noise
        word = {"ok": "further down", "fail": "less far down", "unknown": "undetermined"}["unknown" if quiet else found.status]
        n_queries, suffix = int(self.outcomes.without[primary].any(0).sum()), f" {unit}" if unit else ""
        because = (
            f"Without its {k} named rows the {'measure' if what == 'measure' else 'behaviour'} of a query changed by "
            f"{most.change.value:+.3g}{suffix}, without {k} random ones by {random.change.value:+.3g} (mean over {n_queries} queries and "
            f"{found.n} seeds): {word}; one training's noise is {noise:.2g}. {self.beside(effects)}"
        )
        step = None if found.status == "ok" and not quiet else "More seeds, or a larger group, could tell them apart."
        if found.status == "fail" and not quiet:
            step = "Do not act on these rows: removing them does less than removing random ones. Trace with another method."
        status = "unknown" if quiet else found.status
        return replace(found, name=f"removal: {what}", status=status, because=because.strip(), unit=unit, next_step=step)

    def beside(self, effects: Mapping[str, np.ndarray]) -> str:
        """What the controls' groups did beside the named ones."""
        named_SQ = effects[self.subject.asked.primary]
        told = [f"{CONTROLS[name]}'s rows do {_compared(effects[name], named_SQ)}" for name in CONTROLS if name in effects]
        return f"{'; '.join(told)}." if told else ""

    @property
    def plots(self) -> list[Plot]:
        unit = self.subject.asked.measure.unit
        drawn = [self.plot("What removal does to the measure", f"change, {unit}" if unit else "change", self.outcomes.truth.outcomes_DSQ)]
        if self.behaviour.status != "unknown" or self.behaviour.value is not None:
            drawn.append(
                self.plot("What removal does to the greedy answer", "change in the share that shows the behaviour", self.shown_DSQ)
            )
        return drawn

    def plot(self, title: str, y: str, outcomes_DSQ: np.ndarray) -> Plot:
        """A bar for each kind of group."""
        primary = self.subject.asked.primary
        curves = {name: self.outcomes.points(name, outcomes_DSQ) for name, mask in self.outcomes.without.items() if mask.any()}
        bars = {CONTROLS.get(name, f"named ({name})"): _pick(points, "most") for name, points in curves.items()}
        bars["random"] = _pick(curves[primary], "random")
        known = {name: point.change for name, point in bars.items() if point is not None}
        low, high = ([None if f.interval is None else f.interval[side] for f in known.values()] for side in (0, 1))
        series = Series("change", list(known), [figure.value for figure in known.values()], low, high)
        note = f"Against training on all rows; {self.outcomes.k} rows removed. Intervals over {len(self.outcomes.truth.seeds)} seeds."
        return Plot(title, "rows removed", y, [series], kind="bar", note=note)


def _pick(points: Sequence[Point], pick: str) -> Point | None:
    return next((point for point in points if point.pick == pick), None)


def _compared(other_SQ: np.ndarray, named_SQ: np.ndarray) -> str:
    """Whether the other groups took less, as much or more, over the queries that have both: 2 standard errors over seeds, and a tenth."""
    difference_SQ = other_SQ - named_SQ
    shared_Q = np.isfinite(difference_SQ).all(0)
    if not shared_Q.any():
        return "not bear comparison: no query has both"
    difference_S = difference_SQ[:, shared_Q].mean(1)
    error = float(difference_S.std(ddof=1)) / np.sqrt(len(difference_S)) if len(difference_S) > 1 else np.inf
    value, n = float(difference_S.mean()), int(shared_Q.sum())
    same = max(APART * error, ALIKE * abs(float(named_SQ[:, shared_Q].mean())))
    word = "as much" if abs(value) <= same else "more" if value > 0 else "less"
    return f"{word} ({value:+.3g} on {n} queries)"


def _mean(outcomes_DSQ: np.ndarray, mask_DQ: np.ndarray) -> np.ndarray:
    """[S, Q] over the designs that are masked; NaN where there is none."""
    mask_DSQ = mask_DQ[:, None, :] & np.isfinite(outcomes_DSQ)
    n_SQ = mask_DSQ.sum(0)
    return np.where(n_SQ > 0, np.where(mask_DSQ, outcomes_DSQ, 0.0).sum(0) / np.maximum(n_SQ, 1), np.nan)
