"""The five gaps between an influence estimate and training again, on a small task: a wrong estimator, or another question?

R removals · Q queries
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from headwater.audit import gaps as audit
from headwater.audit.subject import Asked, Subject
from headwater.evaluate.figure import mean_figure
from headwater.evaluate.gaps import TERMS
from headwater.evaluate.gaps import Gaps as Table
from headwater.study.cells import Cell, Place
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.settings import Setting, k_removed
from headwater.study.world import World
from headwater.truth.trained import recipe_of
from headwater.types import Finding

GAP, EFFECT, SHARE = "gap", "effect", "share of the effect"
FISHER = Setting("fisher")


@dataclass(frozen=True)
class Gaps:
    """The audit's check of the same name (`headwater.audit.gaps`), its table as cells: what it removes, minimises and solves is told there.

    `tried` is the estimate; the first rows that it names for `removals` queries are removed, `queries` are measured. Only worlds of at most
    `rows` rows, not in a quick study: every removal takes two trainings and two minimisations in float64.
    """

    name = "gaps"
    summary = "retraining against the estimate as a sum of five gaps: another question, or a wrong estimator? (small tasks)"
    metrics = ("gap", "effect", "share of the effect")
    reference = "Bae et al. 2022"

    tried: Setting = FISHER
    rows: int = 100
    removals: int = 2
    queries: int = 8
    steps: int = 60
    damping: float | None = None  # the audit's: a tenth of the largest eigenvalue

    def unfit(self, world: World) -> str:
        if world.size.is_quick:
            return "a quick study has no time for minimisations"
        if len(world.task.rows) > self.rows:
            return f"{len(world.task.rows)} rows: minimising over more than {self.rows} takes minutes"
        if world.model.task != "causal-lm":
            return "a classifier has no recipe to train it again by"
        return ""

    def __call__(self, world: World) -> Outcome:
        start, here = time.monotonic(), place(self, world)
        check, subject = audit.Gaps(self.removals, self.queries, damping=self.damping, steps=self.steps), self.subject(world)
        if why := check.unfit(subject):
            return Outcome([here.missing(term, GAP, why[0]) for term in TERMS], seconds=time.monotonic() - start)
        study = audit.Study.of(subject, check)
        table = study.table()
        plots = [audit.plot(table)] if table.known_DQ.any() else []
        facts = {"damping": study.damping, "estimate": study.estimator, "removed rows": int((~study.kept_RN).sum())}
        return Outcome(list(cells(here, table)), [told(table, study)], plots, time.monotonic() - start, facts)

    def subject(self, world: World) -> Subject:
        """The world as an audit sees it, after a trace by the method that is tried."""
        method, options = self.tried.method, dict(self.tried.options)
        record = {"primary": method, "recipe": {"k": k_removed(world), "methods": {method: options}}}
        asked = Asked(record, world.queries, world.measure, {method: world.scores(method, **options)})
        training = recipe_of(world.out).model_dump()
        return Subject(world.session, world.rows, world.index, asked, lambda: world.base_session, training=training, seed=world.seed)


def told(table: Table, study: audit.Study) -> Finding:
    """The table's reading, and what it is of."""
    finding = table.reading()
    step = None if finding.next_step is None else f"{capital(finding.next_step)}."
    return replace(finding, because=f"{capital(finding.because)}. {study.about()}", next_step=step)


def capital(words: str) -> str:
    return words[0].upper() + words[1:]


def cells(here: Place, table: Table) -> Iterator[Cell]:
    """Mean absolute values over removals and queries, their intervals over queries; the shares as `evaluate.gaps` has them."""
    unit = {
        "unit": table.unit,
        "because": "" if table.known_DQ.any() else "no removal has all six numbers: no minimisation reached its end",
    }
    for term, values_RQ in table.terms_DQ.items():
        yield here.cell(term, GAP, mean_figure(mean_over_removals(np.abs(values_RQ))), **unit)
    cold_RQ = np.where(table.known_DQ, np.abs(table.changes_DQ["cold"]), np.nan)
    yield here.cell("cold training", EFFECT, mean_figure(mean_over_removals(cold_RQ)), **unit)
    yield here.cell("question", SHARE, table.question_share, n=int(table.known_DQ.sum()), over=CHANGES, because=unit["because"])
    yield here.cell("estimator", SHARE, table.estimator_share, n=int(table.known_DQ.sum()), over=CHANGES, because=unit["because"])


CHANGES = "removals and queries"


def mean_over_removals(values_RQ: np.ndarray) -> np.ndarray:
    """[Q]; NaN where no removal is known."""
    known_RQ = np.isfinite(values_RQ)
    sums_Q = np.where(known_RQ, values_RQ, 0.0).sum(0)
    return np.where(known_RQ.any(0), sums_Q / np.maximum(known_RQ.sum(0), 1), np.nan)
