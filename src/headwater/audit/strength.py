"""How far the named rows stand out from the others: against what they score for other questions, and against the rows that come next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headwater.audit.check import Need, Report
from headwater.audit.subject import Subject
from headwater.evaluate.figure import proportion_figure
from headwater.types import Finding

NEXT = 2  # groups of the same size that come after the named one


@dataclass(frozen=True)
class Strength:
    """The share of queries with a row that is significant (q below `q`) against reference queries; `warn` where fewer than half have one.

    Evidence: "reference", the mean z of a named group (see `headwater.rank.hubs`); "rest", the mean score of the 2 k rows after it over the
    group's own: near 1 where the group is cut out of a larger one. Costs nothing: it reads the trace.
    """

    name: ClassVar[str] = "strength"
    summary: ClassVar[str] = "how far the named rows stand out from their own scores for other questions, and from the next rows"
    reference: ClassVar[str] = "headwater.rank.hubs"
    needs: ClassVar[frozenset[Need]] = frozenset({"trace"})

    q: float = 0.05

    def passes(self, subject: Subject) -> float:
        return 0.0

    def __call__(self, subject: Subject) -> Report:
        listed = [query["ranked"][subject.asked.primary]["proponents"] for query in subject.asked.record["queries"]]
        z_Q = np.array([_mean(rows, "z") for rows in listed])
        rest_Q = np.array([_rest(values_N, subject.asked.k) for values_N in subject.scores.values_QN])
        evidence = {"reference": z_Q, "rest": rest_Q}
        q_values = [[row["q"] for row in rows if row.get("q") is not None] for rows in listed]
        if not any(q_values):
            step = "Trace with reference queries (--reference 128) and a method that can be referred (grad_cos)."
            return Report([Finding("strength", "unknown", "Not measured: the trace has no reference queries.", next_step=step)], evidence)
        significant = sum(min(values, default=1.0) < self.q for values in q_values)
        figure = proportion_figure(significant, len(listed))
        status = "ok" if figure.value >= 0.5 else "warn"
        because = (
            f"{significant} of {len(listed)} queries have a row that stands out from its own scores for other questions (q < {self.q:g})."
        )
        step = None if status == "ok" else "For the others no row is more than chance: read their verdicts before their rows."
        return Report([Finding("strength", status, because, float(figure.value), None, figure.interval, figure.n, step)], evidence)


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else np.nan


def _rest(values_N: np.ndarray, k: int) -> float:
    """The mean of ranks k + 1 to 3 k over that of the first k, between 0 and 1; NaN where nothing is positive."""
    order = np.sort(values_N[~np.isnan(values_N)])[::-1]
    own, later = order[:k].clip(min=0), order[k : k + NEXT * k].clip(min=0)
    return float(later.mean() / own.mean()) if len(later) and own.any() else np.nan
