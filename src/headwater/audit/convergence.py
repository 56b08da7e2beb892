"""Cause 2, convergence: whether training had come to an end, and whether other checkpoints and other trainings name the same rows.

M members (checkpoints, or trainings from other seeds) · Q queries · N rows · D numbers of a gradient row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, cast

import numpy as np
import torch

from headwater import methods
from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.subject import Subject
from headwater.curvature.operators import finite_blocks
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.overlap import overlap_Q, rank_correlation_Q
from headwater.evaluate.ranking import Ranking
from headwater.index.queries import query_index, query_members
from headwater.index.read import StoredIndex
from headwater.methods.shared import MEMBERS
from headwater.types import Finding, Index, Member, MemberRole, Source

STAND_IN = "grad_cos"  # ranks on any index with gradients


@dataclass(frozen=True)
class Convergence:
    """The mean gradient at the end of training, and the agreement of the trace's ranking with that of its other members.

    The mean gradient is small where it is below `small` of its largest along the training, or below `noise` times what N gradients of
    random directions leave, `1 / sqrt(N)` of their root mean square. Rankings agree where the first k overlap by `steady` in the mean over
    members and queries; at twice the overlap of chance or less they have nothing in common: `fail`.
    """

    name: ClassVar[str] = "convergence"
    summary: ClassVar[str] = "gradient at the end of training; agreement of rankings across checkpoints and training seeds"
    reference: ClassVar[str] = "Bae et al. 2022; K and Sogaard 2021"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    small: float = 0.25  # a quarter of the way is left, if the loss is a parabola 1/16 of its height
    noise: float = 2.0
    steady: float = 0.5  # below it more than half of what the trace names is owed to the checkpoint, or the seed

    def passes(self, subject: Subject) -> float:
        if subject.index is None or subject.trace is None:
            return 0.1
        n_members = sum(len(subject.index.members(role)) for role in ("checkpoint", "seed"))
        return 0.1 + n_members * (0.1 + len(subject.asked.queries) / max(len(subject.rows), 1))

    def __call__(self, subject: Subject) -> Report:
        course = Course.of(subject.stored)
        found: dict[str, Agreement | None] = {role: agreement(subject, role) for role in ("checkpoint", "seed")}
        findings = [
            self.gradient(course),
            self.members(found["checkpoint"], "checkpoints", NO_CHECKPOINTS, subject),
            self.members(found["seed"], "seeds", no_seeds(subject.stored), subject),
        ]
        across = found["checkpoint"]
        evidence_Q = np.full(len(subject.scores.query_ids), np.nan) if across is None else across.overlap_Q
        return Report(findings, evidence={"checkpoints": evidence_Q}, plots=[] if across is None else [plot(course, across)])

    # ---------------------------------------------------------------------------------------------------------- findings

    def gradient(self, course: Course) -> Finding:
        end, chance = course.end, 1 / max(course.n_rows, 1) ** 0.5
        if not np.isfinite(end.share):
            return Finding("convergence: gradient", "unknown", "No row has a finite gradient.", next_step="See numerics.")
        at_rest = end.share <= self.noise * chance
        along, words = course.share_of_largest, ""
        if along is not None:
            words = f" and {along:.2g} of the largest along the training ({len(course.members)} checkpoints)"
        because = (
            f"At the end the mean gradient of the rows is {end.share:.2g} of their root mean square{words}; gradients of random directions "
            f"would leave {chance:.2g}."
        )
        status = "ok" if at_rest or (along is not None and along <= self.small) else "warn"
        step = "Train to convergence, or read influence as that of the weights' neighbourhood (PBRF), not of training again: see gaps."
        facts = {"value": end.share, "unit": "of the rows' root mean square", "n": course.n_rows}
        return Finding("convergence: gradient", status, because, **facts, next_step=None if status == "ok" else step)

    def members(self, found: Agreement | None, what: str, missing: tuple[str, str], subject: Subject) -> Finding:
        name = f"convergence: {what}"
        if found is None:
            return Finding(name, "unknown", missing[0], next_step=missing[1])
        overlap, k, n_rows = mean_figure(found.overlap_Q), subject.asked.k, len(subject.stored)
        chance = k / n_rows
        if not np.isfinite(overlap.value):
            return Finding(name, "unknown", "No query ranks any row at both members.", next_step="See the scores of the trace.")
        status = self.judged(overlap, chance)
        because = (
            f"The first {k} rows overlap by {overlap.value:.0%} with those at {found.count(what)} (chance {chance:.0%}), with a rank "
            f"correlation of {np.nanmean(found.correlation_MQ):.2f}{found.note}."
        )
        step = f"Average over them: trace with tracin (checkpoints), or name rows that {what} agree on."
        facts = {"value": overlap.value, "unit": f"of the first {k}", "interval": overlap.interval, "n": overlap.n}
        return Finding(name, status, because, **facts, next_step=None if status == "ok" else step)

    def judged(self, overlap: Figure, chance: float) -> Any:
        high = overlap.value if overlap.interval is None else overlap.interval[1]
        return "fail" if high <= 2 * chance else "warn" if overlap.value < self.steady else "ok"


# ------------------------------------------------------------------------------------------------------------ gradients


@dataclass(frozen=True)
class MeanGradient:
    """The norm of the mean of the rows' gradients, and their root mean square, in the sketch."""

    norm: float
    root_mean_square: float
    n_rows: int

    @property
    def share(self) -> float:
        return self.norm / self.root_mean_square if self.root_mean_square > 0 else (0.0 if self.n_rows else float("nan"))


@dataclass(frozen=True)
class Course:
    """The mean gradient at each checkpoint, in the order of training, and at the model of the trace."""

    members: Sequence[tuple[int | None, MeanGradient]]
    end: MeanGradient

    @staticmethod
    def of(index: StoredIndex) -> Course:
        return Course([(member.step, mean_gradient(member.index)) for member in index.members("checkpoint")], mean_gradient(index))

    @property
    def n_rows(self) -> int:
        return self.end.n_rows

    @property
    def share_of_largest(self) -> float | None:
        """The end's norm over the largest at any checkpoint; None without any."""
        norms = [one.norm for _, one in self.members]
        return self.end.norm / max(norms) if norms and max(norms) > 0 else None


def mean_gradient(source: Source) -> MeanGradient:
    """`|(1/N) sum_n g_n|` and `sqrt((1/N) sum_n |g_n|^2)`. Cost: a scan."""
    total_D, squares, n = torch.zeros(source.layout.size, dtype=torch.float64), 0.0, 0
    for rows_ND in finite_blocks(source):
        total_D += rows_ND.double().sum(0)
        squares += float(rows_ND.double().square().sum())
        n += len(rows_ND)
    return MeanGradient(float(total_D.norm()) / max(n, 1), (squares / max(n, 1)) ** 0.5, n)


# ------------------------------------------------------------------------------------------------------------- rankings


@dataclass(frozen=True, eq=False)
class Agreement:
    """The ranking at each member of other weights, against that of the trace: overlap of the first k, and rank correlation."""

    steps: Sequence[int | None]
    overlap_MQ: np.ndarray
    correlation_MQ: np.ndarray
    note: str = ""

    @cached_property
    def overlap_Q(self) -> np.ndarray:
        """Each query's mean over members; NaN where it ranks nothing."""
        known_MQ = np.isfinite(self.overlap_MQ)
        sums_Q = np.where(known_MQ, self.overlap_MQ, 0.0).sum(0)
        return np.where(known_MQ.any(0), sums_Q / np.maximum(known_MQ.sum(0), 1), np.nan)

    def count(self, what: str) -> str:
        n = len(self.steps)
        return f"{n} other {what if n > 1 else what.removesuffix('s')}"


NO_CHECKPOINTS = (
    "The run has no members at earlier checkpoints, so nothing is known of how the ranking moves along the training.",
    "Index with --from-run OUTPUT, or --members checkpoint.",
)


def no_seeds(index: StoredIndex) -> tuple[str, str]:
    """Why nothing is known across training seeds; another sketch of the same weights is no other training."""
    because = "The run has no members of other trainings, so nothing is known of how the ranking depends on the training's seed."
    if index.members("seed"):
        because = "The seed members are other sketches of the same weights, which the finding sketch speaks of: no other training is known."
    return because, "Train again with another seed, and index that model as a seed member."


def agreement(subject: Subject, role: MemberRole) -> Agreement | None:
    """None where no member of the role has other weights than the trace's model. Cost: a pass over the queries and a scan for each."""
    index = subject.stored
    others = [member for member in index.members(role) if model_of(member) != index.spec.facts["model"]]
    if not others:
        return None
    method, note = stand_in(subject, others)
    asked = {one.name: one.index for one in query_members(subject.session, index, [role], subject.asked.queries, subject.asked.measure)}
    trace = Ranking(subject.scores.values_QN if not note else of_trace(subject, method))
    rankings = [Ranking(scored(method, member.index, asked[member.name])) for member in others]
    return Agreement(
        [member.step for member in others],
        np.stack([overlap_Q(one, trace, subject.asked.k) for one in rankings]),
        np.stack([rank_correlation_Q(one, trace) for one in rankings]),
        note,
    )


def stand_in(subject: Subject, members: Sequence[Member]) -> tuple[Any, str]:
    """(the trace's own method, "") where it can rank on a member alone; else another one, and what to say of that."""
    method: Any = methods.get(subject.asked.primary, **subject.asked.method_options)
    needed = method.requires
    alone = not any(feature.startswith(MEMBERS) or feature == "gradient_whole" for feature in needed)
    if alone and all(needed <= member.index.features for member in members):
        return method, ""
    return methods.get(STAND_IN), f" (by {STAND_IN}: {subject.asked.primary} cannot rank at a member alone)"


def of_trace(subject: Subject, method: Any) -> np.ndarray:
    index = subject.stored
    return scored(method, index, query_index(subject.session, index.layout, subject.asked.queries, subject.asked.measure))


def scored(method: Any, index: Index, queries: Index) -> np.ndarray:
    state = method.fit(index)
    if hasattr(method, "for_task"):
        state = method.for_task(state, index, queries)
    return method.score(state, index, queries).values_QN


def model_of(member: Member) -> str:
    return cast(StoredIndex, member.index).spec.facts["model"]


def plot(course: Course, across: Agreement) -> Plot:
    """By checkpoint: the mean gradient, as a share of its largest, and how much of the trace's ranking is there already."""
    largest = max((one.norm for _, one in course.members), default=0.0) or 1.0
    places = [float(i if step is None else step) for i, (step, _) in enumerate(course.members)]
    steps = [float(i if step is None else step) for i, step in enumerate(across.steps)]
    series = [
        Series("mean gradient / largest", places, [one.norm / largest for _, one in course.members]),
        Series("overlap of the first rows", steps, [float(np.nanmean(overlap_Q)) for overlap_Q in across.overlap_MQ]),
        Series("rank correlation", steps, [float(np.nanmean(correlation_Q)) for correlation_Q in across.correlation_MQ]),
    ]
    note = "Against the trace's own ranking: a curve that is still rising at its end says that the ranking is still moving."
    return Plot("Along the training", "step", "share", series, note=note)
