"""Duplicates: copies in the rows, in a query's named group, and queries that are rows. Q queries · N training rows · C clusters"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.audit.check import Need, Report
from headwater.audit.numerics import graded
from headwater.audit.subject import Subject
from headwater.corpus.identity import base_id, group_of
from headwater.evaluate.figure import mean_figure, proportion_figure
from headwater.rank.groups import ALIKE, clusters
from headwater.types import Example, Finding, FindingStatus


@dataclass(frozen=True)
class Duplicates:
    """Clusters of rows whose text is the same but for case and white space, or shares `alike` of its three-word shingles.

    `warn` where more than `rows` of them have a copy, where a named group is on average to more than `group` one cluster (k rows are then
    hardly more than one piece of evidence), and where more than `queries` of the queries are rows. Nothing here is `fail`: a score of a row
    that has copies is right; it is one copy's.
    """

    name: ClassVar[str] = "duplicates"
    summary: ClassVar[str] = "copies and near-copies among the rows and in named groups; queries that were trained on"
    reference: ClassVar[str] = "Bayardo et al. 2007"
    needs: ClassVar[frozenset[Need]] = frozenset()

    alike: float = ALIKE
    rows: float = 0.1
    group: float = 0.5
    queries: float = 0.0

    def passes(self, subject: Subject) -> float:
        return 0.0

    def __call__(self, subject: Subject) -> Report:
        cluster_N = row_clusters(subject.rows, alike=self.alike)
        findings = [self._rows(subject.rows, cluster_N)]
        if subject.trace is not None:
            findings += [self._group(subject, cluster_N), self._leaks(subject)]
        return Report(findings)

    def _rows(self, rows: Sequence[Example], cluster_N: np.ndarray) -> Finding:
        sizes_C = np.bincount(cluster_N)
        largest, n_clusters, n_copies = int(sizes_C.max()), int((sizes_C > 1).sum()), int((sizes_C[cluster_N] > 1).sum())
        n_exact = len(rows) - len(set(_keys(rows)))
        share = proportion_figure(n_copies, len(rows), over="rows")
        status = graded(share.value, warn=self.rows, fail=1)
        because = (
            f"{n_copies} of {len(rows)} rows have a copy: {n_clusters} clusters, the largest of {largest} rows; {n_exact} rows are exact "
            "repeats."
        )
        if not n_copies:
            because = f"No two of {len(rows)} rows are copies or near-copies of each other."
        step = 'Read scores by cluster: `Trace.by_group("near_duplicates")`; the influence of one of many copies is about zero.'
        return _finding("duplicates: rows", status, because, share.value, share.interval, len(rows), step)

    def _group(self, subject: Subject, cluster_N: np.ndarray) -> Finding:
        name = "duplicates: named groups"
        shares_Q = np.array([np.bincount(cluster_N[at_K]).max() / len(at_K) if len(at_K) > 1 else np.nan for at_K in subject.group_QK])
        figure = mean_figure(shares_Q, seed=subject.seed)
        if not figure.n:
            return Finding(name, "unknown", "No query's named group has two rows.", next_step="Trace with a larger k.")
        pieces = float(np.mean([len(np.unique(cluster_N[at_K])) for at_K in subject.group_QK if len(at_K) > 1]))
        status = graded(figure.value, warn=self.group, fail=1)
        because = (
            f"On average {figure.value:.0%} of a named group is one cluster: its {subject.asked.k} rows are {pieces:.1f} different texts "
            f"({figure.n} queries)."
        )
        step = "Ask for a larger k, or rank clusters in place of rows: the list says the same thing several times."
        return _finding(name, status, because, figure.value, figure.interval, figure.n, step)

    def _leaks(self, subject: Subject) -> Finding:
        asked = subject.asked.queries
        seen = set(_keys(subject.rows))
        exact = [query.id for query in asked if group_of(query.prompt, query.response, query.label) in seen]
        both = row_clusters([*subject.rows, *asked], alike=self.alike)
        trained = set(both[: len(subject.rows)].tolist())
        near = [query.id for query, cluster in zip(asked, both[len(subject.rows) :].tolist(), strict=True) if cluster in trained]
        leaked = list(dict.fromkeys([*exact, *near]))
        share = proportion_figure(len(leaked), len(asked))
        status = graded(share.value, warn=self.queries, fail=1)
        because = f"None of {len(asked)} queries is a training row, or nearly one."
        if leaked:
            because = (
                f"{len(leaked)} of {len(asked)} queries are training rows, {len(exact)} of them word for word: {', '.join(leaked[:3])}."
            )
        step = "Such a trace finds the row itself, by text as well as by gradient: judge the others apart, or ask in other words."
        return _finding("duplicates: queries in training", status, because, share.value, share.interval, len(asked), step)


def row_clusters(rows: Sequence[Example], *, alike: float = ALIKE) -> np.ndarray:
    """[N] which cluster of near-duplicates each row is in, counted from 0. A row without text is like its exact copies alone."""
    texts = [f"{row.prompt} {row.response}" for row in rows]
    return np.array(clusters(_keys(rows), texts, alike=alike), dtype=np.int64)


def _keys(rows: Sequence[Example]) -> list[str]:
    """[N] the same for rows of the same text, or, where there is no text, of the same tokens."""
    return [row.group or base_id(row.id) for row in rows]


def _finding(
    name: str, status: FindingStatus, because: str, value: float, interval: tuple[float, float] | None, n: int, step: str
) -> Finding:
    next_step = None if status == "ok" else step
    return Finding(name, status, because, value=value, interval=interval, n=n, next_step=next_step)
