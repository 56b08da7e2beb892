"""Cause 3, behaviour, at the price of a few steps: does the answer move when the model is stepped on the named rows, or away from them?

Two tail patches of every group. *Learned*: from the model before training, steps down the loss of the group: do these rows alone bring the
answer about? *Unlearned*: from the trained model, steps up their loss: does the answer go with them? Each against random groups of as many
rows, and against the groups that BM25 and RepSim would have named. Q queries · R random groups · D sets of rows · N training rows
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
    """How far each query's measure moved towards (away from, for unlearned) the answer, in nats, by kind of group."""

    before_Q: np.ndarray  # the measure without a step
    own_Q: np.ndarray
    random_RQ: np.ndarray
    rivals: Mapping[str, np.ndarray]  # [Q] by method

    @property
    def above_random_Q(self) -> np.ndarray:
        return self.own_Q - np.nanmean(self.random_RQ, axis=0)


@dataclass(frozen=True)
class Patch:
    """Steps of AdamW with the training's own learning rate (1e-3 where that is not known) on each query's named group.

    `fail` where the named groups move their answers no further than random ones (the mean over queries is below 0 with its interval, or
    its interval contains 0 with `fewest` queries or more); `warn` where BM25's groups move them as far: the gradients add nothing here.
    Cost: for each group `steps` passes over its rows, Q (1 + rivals) + R groups in all.
    """

    name: ClassVar[str] = "patch"
    summary: ClassVar[str] = "a few steps on the named rows, and away from them, against random, BM25's and RepSim's rows"
    reference: ClassVar[str] = "Chang et al. 2024 (tail patch)"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    draws: int = 8
    steps: int = 10  # down, from the model before training
    unlearning_steps: int = 3  # up, from the trained model: more of them destroy it altogether
    lr: float | None = None
    fewest: int = FEWEST

    def passes(self, subject: Subject) -> float:
        n_queries = 0 if subject.trace is None else len(subject.asked.queries)
        k = 0 if subject.trace is None else subject.asked.k
        down = self.steps * (n_queries * (1 + len(RIVALS)) + self.draws) if subject.base is not None else 0
        return k * (down + self.unlearning_steps * (n_queries + self.draws)) / max(len(subject.rows), 1)

    def __call__(self, subject: Subject) -> Report:
        lr = self.lr or float(subject.training.get("lr") or UNKNOWN_LR)
        unlearned = self._effects(subject, subject.session, Steps(lr, self.unlearning_steps, "adamw", "up"), rivals=())
        findings = [self._finding(subject, "unlearned", unlearned, f"{self.unlearning_steps} steps away from")]
        evidence = {"unlearned": unlearned.above_random_Q}
        if subject.base is None:
            step = "Name the model before training: --base MODEL."
            unknown = Finding("patch: learned", "unknown", "Not measured: the model before training is not known.", next_step=step)
            return Report([*findings, unknown], evidence)
        learned = self._effects(subject, subject.base_session, Steps(lr, self.steps, "adamw", "down"), rivals=RIVALS)
        findings.append(self._finding(subject, "learned", learned, f"{self.steps} steps from the model before training on"))
        findings += [self._against(subject, name, learned) for name in learned.rivals]
        evidence |= {"learned": learned.above_random_Q, "moved": unlearned.before_Q - learned.before_Q}
        return Report(findings, evidence, [_plot(learned)])

    def _effects(self, subject: Subject, session: Session, steps: Steps, *, rivals: Sequence[str]) -> Effects:
        queries, groups = subject.asked.queries, subject.group_QK
        others = {name: [proponents(v_N, subject.asked.k) for v_N in control_scores(subject, name).values_QN] for name in rivals}
        sets = [*groups, *(group for named in others.values() for group in named), *subject.random_groups(self.draws)]
        n_own = len(queries) * (1 + len(others))
        asked_DQ = np.concatenate(
            [*[np.eye(len(queries), dtype=bool)] * (1 + len(others)), np.ones((self.draws, len(queries)), dtype=bool)]
        )
        truth = tail_patch(
            session, subject.rows, queries, steps, sets=_designs(sets, len(subject.rows)), asked_DQ=asked_DQ,
            scope=[block.name for block in subject.stored.layout.blocks], measure=subject.asked.measure,
        )  # fmt: skip
        moved_DQ = changes(truth) * (1 if steps.way == "down" else -1)
        own = [np.diagonal(part_QQ).copy() for part_QQ in np.split(moved_DQ[:n_own], 1 + len(others))]
        before_Q = truth.outcomes_DSQ[truth.designs.index(NONE), 0]
        return Effects(before_Q, own[0], moved_DQ[n_own:], dict(zip(others, own[1:], strict=True)))

    def _finding(self, subject: Subject, what: str, effects: Effects, steps: str) -> Finding:
        figure = mean_figure(effects.above_random_Q, seed=subject.seed)
        beyond = np.mean(effects.own_Q > effects.random_RQ.max(0))
        unit = subject.asked.measure.unit
        because = (
            f"{steps[0].upper()}{steps[1:]} the named rows move the answer {np.nanmean(effects.own_Q):.3g} {unit or ''}, on random rows "
            f"{np.nanmean(effects.random_RQ):.3g}; further than each of {len(effects.random_RQ)} random groups for {beyond:.0%} of queries."
        )
        status = self._status(figure)
        step = (
            None
            if status == "ok"
            else "Believe single queries only where their own verdict says so; trace with another method, or a larger k."
        )
        return Finding(f"patch: {what}", status, because, float(figure.value), unit, figure.interval, figure.n, step)

    def _status(self, figure: Figure) -> FindingStatus:
        if figure.interval is None or figure.n < self.fewest:
            return "unknown"
        return "ok" if figure.interval[0] > 0 else "fail"

    def _against(self, subject: Subject, rival: str, effects: Effects) -> Finding:
        """The paired test: do the primary method's groups move their answers further than the rival's?"""
        figure = mean_figure(effects.own_Q - effects.rivals[rival], seed=subject.seed)
        unit = subject.asked.measure.unit
        adds = figure.interval is not None and figure.interval[0] > 0
        status = "unknown" if figure.interval is None or figure.n < self.fewest else "ok" if adds else "warn"
        words = "further than" if adds else "no further than"
        because = f"{subject.asked.primary}'s rows move the answer {words} those of {rival} (paired over queries): {figure} {unit or ''}."
        step = (
            None
            if adds
            else f"On this corpus {rival} is as good and cheaper: {subject.asked.primary} adds nothing to it that is measured here."
        )
        return Finding(f"patch: against {rival}", status, because, float(figure.value), unit, figure.interval, figure.n, step)


def _designs(groups: Sequence[np.ndarray], n_rows: int) -> Designs:
    kept_DN = np.zeros((len(groups), n_rows), dtype=bool)
    for kept_N, group in zip(kept_DN, groups, strict=True):
        kept_N[group] = True
    return Designs(tuple(f"group/{d}" for d in range(len(groups))), kept_DN)


def _plot(effects: Effects) -> Plot:
    kinds = {"named": effects.own_Q, **effects.rivals, "random": effects.random_RQ.mean(0)}
    figures = {name: mean_figure(values_Q) for name, values_Q in kinds.items()}
    low, high = (tuple(f.interval[i] if f.interval else None for f in figures.values()) for i in (0, 1))
    bars = Series("mean over queries", tuple(figures), tuple(float(f.value) for f in figures.values()), low, high)
    note = "From the model before training, the same steps on each kind of group. Whiskers: 95 % over queries."
    return Plot("What a few steps on a group do to the answer", "rows", "change of the measure, nats", [bars], kind="bar", note=note)
