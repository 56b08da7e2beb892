"""Five gaps between the trace's numbers and training again: "your estimator is wrong" against "you asked another question".

R removals · Q queries · N rows · D numbers of the parameters in scope
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.solver import used_curvature
from headwater.audit.subject import Subject
from headwater.curvature import Fisher
from headwater.curvature.conjugate import conjugate_gradients
from headwater.curvature.operators import largest_eigenvalue, random_vectors
from headwater.evaluate.gaps import TERMS, gaps
from headwater.evaluate.gaps import Gaps as Table
from headwater.index.live import LiveIndex, LiveQueries, live_index
from headwater.index.queries import query_index
from headwater.methods.influence import Influence
from headwater.model.session import Session
from headwater.truth.causal import CausalRows
from headwater.truth.finetune import Recipe, TrainingDiverged
from headwater.truth.optimum import LBFGS
from headwater.truth.pbrf import pbrf
from headwater.truth.proximal import proximal
from headwater.truth.retrain import ByRecipe, Start, measured
from headwater.types import Example, Finding, Truth

PASSES = 3  # of a product with the Gauss-Newton operator
SHARE = 0.1  # of the largest eigenvalue


@dataclass(frozen=True)
class Gaps:
    """Training again without what the trace names, as a sum of five gaps from the trace's own numbers (`headwater.evaluate.gaps`).

    The named groups of the first `removals` queries are removed, one group at a time, and the first `queries` queries are measured: after
    training from the base model (cold) and on from the final weights (warm), at the proximal response and PBRF of the parameters in scope
    in float64, by the exact Gauss-Newton influence, and by the trace's own solver, all at one damping. Where the trace solves nothing,
    influence with the Fisher matrix of the stored rows takes its place: the finding says so, and is at most a `warn`.
    """

    name: ClassVar[str] = "gaps"
    summary: ClassVar[str] = "retraining against the estimate, as a sum of five gaps: another question, or a wrong estimator?"
    reference: ClassVar[str] = "Bae et al. 2022 (arXiv 2209.05364)"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace", "base"})

    removals: int = 3
    queries: int = 8
    parameters: int = 100_000  # in scope: L-BFGS and the exact solve keep some tens of vectors of them in float64
    damping: float | None = None  # a tenth of the largest eigenvalue where not given: at the usual ones minima take thousands of passes
    steps: int = 200
    tolerance: float = 1e-2  # of the gradient at the start: an outcome is then some 1 % from its end

    def passes(self, subject: Subject) -> float:
        """Two minimisations and an exact solve, of half the steps allowed, and two trainings for each removal."""
        epochs = int(subject.training.get("epochs", 1))
        return float(self.removals * (2 * epochs + (2 + PASSES) * self.steps / 2))

    def __call__(self, subject: Subject) -> Report:
        if why := self.unfit(subject):
            return Report([Finding("gaps", "unknown", why[0], next_step=why[1])])
        study = Study.of(subject, self)
        table = study.table()
        finding = table.reading()
        because = f"{finding.because[0].upper()}{finding.because[1:]}. {study.about()}"
        step = None if finding.next_step is None else f"{finding.next_step[0].upper()}{finding.next_step[1:]}."
        own = used_curvature(subject)[0] is not None
        status = "warn" if finding.status == "fail" and not own else finding.status  # the trace does not rest on the estimate
        return Report(
            [replace(finding, status=status, because=because, next_step=step)], plots=[plot(table)] if table.known_DQ.any() else []
        )

    def unfit(self, subject: Subject) -> tuple[str, str] | None:
        """Why this model has no such table, and what to do; None where it has."""
        size = sum(int(np.prod(block.shape)) for block in subject.stored.layout.blocks)
        if subject.session.task != "causal-lm":
            return "Classifiers have no recipe to train them again by.", "Measure removals with a function that trains (headwater.truth)."
        if not subject.training:
            return "How the model was trained is not known, so it cannot be trained again.", "Index with --from-run OUTPUT of the Trainer."
        if size > self.parameters:
            words = f"The scope has {size:,} parameters, more than {self.parameters:,}: minimising to PBRF is not affordable."
            return words, "Narrow the scope, or allow more (gaps.parameters)."
        if not any(len(group_K) for group_K in subject.group_QK[: self.removals]):
            return "The trace names no rows for the first queries.", "See the scores of the trace."
        return None


# ------------------------------------------------------------------------------------------------------- the six tables


@dataclass(frozen=True, eq=False)
class Study:
    """What the six tables share: the removals, the queries, the model in float64, and the damping of each block."""

    subject: Subject
    options: Gaps
    kept_RN: np.ndarray
    live: LiveIndex  # float64
    objective: CausalRows
    damping: float
    before_Q: np.ndarray
    estimate_RQ: np.ndarray
    estimator: str

    @staticmethod
    def of(subject: Subject, options: Gaps) -> Study:
        asked, session = subject.asked, double(subject.session)
        queries = list(asked.queries)[: options.queries]
        kept_RN = without(subject, options.removals)
        live = live_index(subject.stored, session, subject.rows)
        names = [block.name for block in subject.stored.layout.blocks]
        objective = CausalRows(session, subject.rows, queries, asked.measure, names)
        damping = within_reach(live) if options.damping is None else options.damping
        scores_QN, estimator = predictions(subject, queries, damping)
        estimate_RQ = -(~kept_RN).astype(np.float64) @ np.nan_to_num(scores_QN).T
        before_Q = objective.measures(objective.start_D).numpy()
        return Study(subject, options, kept_RN, live, objective, damping, before_Q, estimate_RQ, estimator)

    def table(self) -> Table:
        minimise = LBFGS(relative=self.options.tolerance, max_steps=self.options.steps)
        problem: Any = self.objective
        near = {fn.__name__: fn(problem, self.kept_RN, damping=self.damping, minimise=minimise) for fn in (proximal, pbrf)}
        return gaps(
            cold_DQ=self.trained(self.subject.base_session, "cold"),
            warm_DQ=self.trained(self.subject.session, "warm"),
            proximal_DQ=self.changes(near["proximal"]),
            pbrf_DQ=self.changes(near["pbrf"]),
            exact_DQ=self.exact(),
            solver_DQ=self.estimate_RQ,
            unit=self.subject.asked.measure.unit,
        )

    def changes(self, truth: Truth) -> np.ndarray:
        return truth.outcomes_DSQ[:, 0] - self.before_Q

    def trained(self, start: Session, kind: Start) -> np.ndarray:
        """[R, Q] changes after training by the recipe from these weights; NaN where it diverged."""
        training = ByRecipe(lambda: start, Recipe(**self.subject.training), kind)
        return np.stack([self._after(training, np.flatnonzero(kept_N)) for kept_N in self.kept_RN])

    def _after(self, training: ByRecipe, kept: np.ndarray) -> np.ndarray:
        try:
            session = training(self.subject.examples(kept), self.subject.seed)
        except TrainingDiverged:
            return np.full(len(self.before_Q), np.nan)
        return measured(session, self.subject.asked.measure, self.objective.queries) - self.before_Q

    def exact(self) -> np.ndarray:
        """[R, Q] `+(1/N) grad m (G + lambda)^-1 sum_removed grad L` by conjugate gradients in float64: one solve for each removal."""
        index, queries = self.live, self._queries()
        removed_RD = torch.stack([index.source.take(np.flatnonzero(~kept_N)).sum(0) for kept_N in self.kept_RN]) / len(index)
        with index.source.linearised() as product:
            tolerance, steps = 1e-2 * self.options.tolerance, PASSES * self.options.steps
            found = conjugate_gradients(lambda v_RD: product(v_RD) + self.damping * v_RD, removed_RD, tolerance=tolerance, max_steps=steps)
        assert found.residual_K is not None
        changes_RQ = (found.value @ queries.take("gradient_whole", np.arange(len(queries))).T).numpy()
        return np.where((found.residual_K <= self.options.tolerance).numpy()[:, None], changes_RQ, np.nan)

    def _queries(self) -> LiveQueries:
        asked, source = self.subject.asked, self.live.source
        stored = query_index(source.session, self.live.layout, self.objective.queries, asked.measure)
        return LiveQueries(stored, source, self.objective.queries, asked.measure)

    def about(self) -> str:
        gone = (~self.kept_RN).sum(1)
        return (
            f"Removed: the named rows of {len(gone)} queries, {gone.mean():.0f} at a time; measured on {len(self.before_Q)} queries; the "
            f"estimate is {self.estimator}."
        )


def double(session: Session) -> Session:
    """The same model in float64: a single row's effect is often below what float32 can tell."""
    return replace(session, model=copy.deepcopy(session.model).double())


def without(subject: Subject, most: int) -> np.ndarray:
    """[R, N] all rows but the named group of one of the first queries that have one."""
    groups = [group_K for group_K in subject.group_QK if len(group_K)][:most]
    kept_RN = np.ones((len(groups), len(subject.rows)), dtype=bool)
    for kept_N, group_K in zip(kept_RN, groups, strict=True):
        kept_N[group_K] = False
    return kept_RN


def within_reach(live: LiveIndex) -> float:
    """A tenth of the Gauss-Newton matrix' largest eigenvalue: some tens of passes lead to the minima then, whatever the model."""
    start_1D = random_vectors(1, live.source, seed=0)
    return SHARE * largest_eigenvalue(live.source.gauss_newton, start_1D)


def predictions(subject: Subject, queries: Sequence[Example], damping: float) -> tuple[np.ndarray, str]:
    """([Q, N] predicted nats of training on a row once more, by what): the trace's own curvature at this damping, or one in its place."""
    used, mode = used_curvature(subject)
    curvature: Any = Fisher(joint=True) if used is None else used
    method = Influence(replace(curvature, damping=damping), "stored" if mode == "stored" else "exact")
    index, rows = subject.stored, subject.stored if mode == "stored" else live_index(subject.stored, subject.session, subject.rows)
    asked = query_index(subject.session, index.layout, queries, subject.asked.measure)
    if isinstance(rows, LiveIndex):
        asked = LiveQueries(asked, rows.source, queries, subject.asked.measure)
    scores = method.score(method.fit(rows), rows, asked)
    own = (
        f"the trace's own ({used.name})"
        if used is not None
        else f"by the stored rows' Fisher matrix ({subject.asked.primary} solves nothing)"
    )
    return scores.values_QN, f"{own} at a damping of {damping:.2g}"


def plot(table: Table) -> Plot:
    sizes: Mapping[str, float] = table.sizes
    names = [term.replace("_", " ") for term in TERMS]
    unit = table.unit or "the measure"
    note = f"The effect of cold training itself is {table.effect:.3g}. The first three: another question; the last two: a wrong estimate."
    series = [Series("mean size", names, [sizes[term] for term in TERMS])]
    return Plot("From training again to the estimate", "gap", unit, series, kind="bar", note=note)
