"""Hubs: rows that are the answer to everything are evidence about nothing. Q queries · N training rows"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.audit.check import Need, Report
from headwater.audit.subject import Subject
from headwater.evaluate.hubs import hub_share, occurrence_skewness
from headwater.evaluate.ranking import Ranking
from headwater.types import Finding

FEWEST = 5  # queries: with fewer, one row in first place of two of them says nothing


@dataclass(frozen=True)
class Hubs:
    """The share of queries that have one and the same first row: `warn` where it is significantly above `warn`, `fail` above `fail`.

    Wilson's interval over queries; the skewness of k-occurrence stands beside it (Radovanovic et al. 2010). In the paper's own Llama
    scores on grammars one row is first for most queries.
    """

    name: ClassVar[str] = "hubs"
    summary: ClassVar[str] = "share of queries that have the same first row; what hubs take"
    reference: ClassVar[str] = "Radovanovic et al. 2010"
    needs: ClassVar[frozenset[Need]] = frozenset({"trace"})

    warn: float = 0.2
    fail: float = 0.5

    def passes(self, subject: Subject) -> float:
        return 0.0

    def __call__(self, subject: Subject) -> Report:
        ranking = Ranking(subject.scores.values_QN)
        if len(subject.scores.query_ids) < FEWEST:
            few = f"{len(subject.scores.query_ids)} queries, and {FEWEST} are needed to tell a hub from a fitting row"
            return Report([Finding("hubs", "unknown", few, next_step="Trace more queries, of different kinds, together.")])
        share, row = hub_share(ranking)
        skewness = occurrence_skewness(ranking, subject.asked.k)
        low = share.interval[0] if share.interval else np.nan
        status = "fail" if low > self.fail else "warn" if low > self.warn else "ok"
        because = (
            f"Row {subject.scores.train_ids[row]} comes first for {share.value:.0%} of {share.n} queries; how often rows are among the "
            f"first {subject.asked.k} has a skewness of {skewness.value:.2g}."
        )
        step = None if status == "ok" else "Read the hub-corrected ranks (z), or trace with a method that normalises (grad_cos, relatif)."
        return Report([Finding("hubs", status, because, value=share.value, interval=share.interval, n=share.n, next_step=step)])
