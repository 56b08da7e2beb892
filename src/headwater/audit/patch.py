"""Cause 3, behaviour, at the price of a few steps: does the answer move when the model is stepped on the named rows, or away from them?

Tail patches of every group. *Learned*: from the model before training, steps down the loss of the group: do these rows bring the answer
about? *Needed*: the same on the group together with the rows that come after it, and on those alone: would the answer come about without
the group? *Unlearned*: from the trained model, steps up the group's loss: does the answer go with it? Beside them random groups of as many
rows, and those that BM25 and RepSim would have named. Q queries · R random groups · D sets of rows · N training rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.controls import control_scores
from headwater.audit.subject import Subject
from headwater.evaluate.figure import Figure, mean_figure
from headwater.model.session import Session
from headwater.rank.topk import proponents
from headwater.truth.design import Designs
from headwater.truth.tail_patch import NONE, changes, tail_patch
from headwater.truth.tail_patch import Patch as Steps
from headwater.types import Finding, FindingStatus

FEWEST = 5  # queries for an interval that means something
UNKNOWN_LR = 1e-3  # where the training's own is not known
RIVALS = ("lexical", "repsim")


@dataclass(frozen=True)
class Effects:
    """How far each query's measure moved, towards the answer for steps down and away from it for steps up, by kind of group, in nats."""

    before_Q: np.ndarray  # the measure without a step
    random_RQ: np.ndarray
    of: Mapping[str, np.ndarray]  # [Q] by kind

    @property
    def above_random_Q(self) -> np.ndarray:
        return self.of["named"] - np.nanmean(self.random_RQ, axis=0)


@dataclass(frozen=True)
class Patch:
    """Steps of AdamW with the training's own learning rate (1e-3 where that is not known) on each query's named group.

    "patch: learned" is `fail` where the named groups bring their answers about no more than random ones (the 95 % interval of the mean over
    queries is not above 0). The others are `warn` at most: "unlearned", since steps up a loss wreck much else; "against lexical" and
    "against repsim" where the rival's groups move the answers as far, so that the gradients add nothing here. Cost: `steps` passes over
    each group's rows.
    """

    name: ClassVar[str] = "patch"
    summary: ClassVar[str] = "a few steps on the named rows, and away from them, against random, BM25's and RepSim's rows"
    reference: ClassVar[str] = "Chang et al. 2024 (tail patch)"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    draws: int = 8
    steps: int = 10  # down, from the model before training
    unlearning_steps: int = 3  # up, from the trained model, at a third of the rate: more of them destroy it altogether
    neighbours: int = 3  # times as many rows as the group has, the next in its ranking
    lr: float | None = None
    fewest: int = FEWEST

    def passes(self, subject: Subject) -> float:
        n_queries = 0 if subject.trace is None else len(subject.asked.queries)
        k = 0 if subject.trace is None else subject.asked.k
        groups = n_queries * (1 + len(RIVALS) + 1 + 2 * self.neighbours) + self.draws
        down = self.steps * groups if subject.base is not None else 0
        return k * (down + self.unlearning_steps * (n_queries + self.draws)) / max(len(subject.rows), 1)

    def __call__(self, subject: Subject) -> Report:
        lr = self.lr or float(subject.training.get("lr") or UNKNOWN_LR)
        named = {"named": subject.group_QK}
        unlearned = self._effects(subject, subject.session, Steps(lr / 3, self.unlearning_steps, "adamw", "up"), named)
        findings = [self._finding(subject, "unlearned", unlearned, f"{self.unlearning_steps} steps away from")]
        evidence = {"unlearned": unlearned.above_random_Q}
        if subject.base is None:
            step = "Name the model before training: --base MODEL."
            unknown = Finding("patch: learned", "unknown", "Not measured: the model before training is not known.", next_step=step)
            return Report([*findings, unknown], evidence)
        learned = self._effects(
            subject, subject.base_session, Steps(lr, self.steps, "adamw", "down"), named | self._neighbours(subject) | self._rivals(subject)
        )
        findings.append(self._finding(subject, "learned", learned, f"{self.steps} steps from the model before training on"))
        findings += [self._against(subject, name, learned) for name in RIVALS]
        evidence |= {
            "learned": learned.above_random_Q,
            "needed": learned.of["with"] - learned.of["without"],
            "moved": unlearned.before_Q - learned.before_Q,
        }
        return Report(findings, evidence, [_plot(learned)])

    def _neighbours(self, subject: Subject) -> dict[str, list[np.ndarray]]:
        """The rows that come after each group, with it and without it."""
        n = subject.asked.k * (1 + self.neighbours)
        near = [np.argsort(-np.nan_to_num(values_N, nan=-np.inf), kind="stable")[:n] for values_N in subject.scores.values_QN]
        return {"with": near, "without": [np.setdiff1d(one, group) for one, group in zip(near, subject.group_QK, strict=True)]}

    def _rivals(self, subject: Subject) -> dict[str, list[np.ndarray]]:
        return {name: [proponents(v_N, subject.asked.k) for v_N in control_scores(subject, name).values_QN] for name in RIVALS}

    def _effects(self, subject: Subject, session: Session, steps: Steps, groups: Mapping[str, Sequence[np.ndarray]]) -> Effects:
        n_queries = len(subject.asked.queries)
        sets = [*(group for of_kind in groups.values() for group in of_kind), *subject.random_groups(self.draws)]
        asked_DQ = np.concatenate([*[np.eye(n_queries, dtype=bool)] * len(groups), np.ones((self.draws, n_queries), dtype=bool)])
        truth = tail_patch(
            session, subject.rows, subject.asked.queries, steps, sets=_designs(sets, len(subject.rows)), asked_DQ=asked_DQ,
            scope=[block.name for block in subject.stored.layout.blocks], measure=subject.asked.measure,
        )  # fmt: skip
        moved_DQ = changes(truth) * (1 if steps.way == "down" else -1)
        parts_KQQ = np.split(moved_DQ[: n_queries * len(groups)], len(groups))
        of = {kind: np.diagonal(part_QQ).copy() for kind, part_QQ in zip(groups, parts_KQQ, strict=True)}
        return Effects(truth.outcomes_DSQ[truth.designs.index(NONE), 0], moved_DQ[n_queries * len(groups) :], of)

    def _finding(self, subject: Subject, what: str, effects: Effects, steps: str) -> Finding:
        figure = mean_figure(effects.above_random_Q, seed=subject.seed)
        beyond = np.mean(effects.of["named"] > effects.random_RQ.max(0))
        unit = subject.asked.measure.unit
        named, random = np.nanmean(effects.of["named"]), np.nanmean(effects.random_RQ)
        because = (
            f"{steps[0].upper()}{steps[1:]} the named rows move the answer {named:.3g} {unit or ''}, on random rows {random:.3g}; "
            f"further than each of {len(effects.random_RQ)} random groups for {beyond:.0%} of queries."
        )
        status = self._status(figure, otherwise="fail" if what == "learned" else "warn")
        step = self._next(status, "Believe single queries only where their own verdict says so; trace with another method, or a larger k.")
        return Finding(f"patch: {what}", status, because, float(figure.value), unit, figure.interval, figure.n, step)

    def _status(self, figure: Figure, *, otherwise: FindingStatus) -> FindingStatus:
        if figure.interval is None or figure.n < self.fewest:
            return "unknown"
        return "ok" if figure.interval[0] > 0 else otherwise

    def _next(self, status: FindingStatus, step: str) -> str | None:
        few = f"Trace {self.fewest} queries or more together: with fewer the mean has no interval to speak of."
        return {"ok": None, "unknown": few}.get(status, step)

    def _against(self, subject: Subject, rival: str, effects: Effects) -> Finding:
        """The paired test: do the primary method's groups move their answers further than the rival's?"""
        figure = mean_figure(effects.of["named"] - effects.of[rival], seed=subject.seed)
        unit = subject.asked.measure.unit
        adds = figure.interval is not None and figure.interval[0] > 0
        status = self._status(figure, otherwise="warn")
        words = "further than" if adds else "no further than"
        because = f"{subject.asked.primary}'s rows move the answer {words} those of {rival} (paired over queries): {figure} {unit or ''}."
        step = self._next(
            status, f"On this corpus {rival} is as good and cheaper: nothing that {subject.asked.primary} adds to it is measured."
        )
        return Finding(f"patch: against {rival}", status, because, float(figure.value), unit, figure.interval, figure.n, step)


def _designs(groups: Sequence[np.ndarray], n_rows: int) -> Designs:
    kept_DN = np.zeros((len(groups), n_rows), dtype=bool)
    for kept_N, group in zip(kept_DN, groups, strict=True):
        kept_N[group] = True
    return Designs(tuple(f"group/{d}" for d in range(len(groups))), kept_DN)


def _plot(effects: Effects) -> Plot:
    kinds = {name: effects.of[name] for name in ("named", *RIVALS)} | {"random": effects.random_RQ.mean(0)}
    figures = {name: mean_figure(values_Q) for name, values_Q in kinds.items()}
    low, high = (tuple(f.interval[i] if f.interval else None for f in figures.values()) for i in (0, 1))
    bars = Series("mean over queries", tuple(figures), tuple(float(f.value) for f in figures.values()), low, high)
    note = "From the model before training, the same steps on each kind of group. Whiskers: 95 % over queries."
    return Plot("What a few steps on a group do to the answer", "rows", "change of the measure, nats", [bars], kind="bar", note=note)
