"""Repetition: how often each text was seen, what that did to the model, and what a cluster of copies weighs against one of them.

Q queries · N training rows · C clusters of near-duplicates · S sampled rows · B resamples
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from headwater.audit.check import Need, Plot, Report, Series
from headwater.audit.duplicates import row_clusters
from headwater.audit.numerics import graded
from headwater.audit.sampled import losses, some_positions
from headwater.audit.subject import Subject
from headwater.evaluate.figure import Figure, mean_figure, percentiles, weights
from headwater.rank.by_group import NEAR_DUPLICATES, GroupScores, adds_up, group_scores, row_keys
from headwater.types import Example, Finding, FindingStatus, Scores


@dataclass(frozen=True)
class Repetition:
    """Exposures of a text (epochs times copies), the gap between training and validation loss, and cluster against single copy.

    More than `exposures` of one text is `warn`: in `benchmarks.repetition` a small model loses little at 14 epochs and overfits at 56. A
    gap whose interval lies above `gap` nats per target is `warn` too: rows that are known by heart have almost no gradient left, and
    influence is then ill-defined (Basu et al. 2021). So is a trace in which more than `turned` of the queries have their first cluster
    elsewhere than their first row: read it by cluster. Nothing here is `fail`: it says how to read.
    """

    name: ClassVar[str] = "repetition"
    summary: ClassVar[str] = "exposures of each text, train/validation gap, influence of a cluster of copies against one copy's"
    reference: ClassVar[str] = "Xue et al. 2023"
    needs: ClassVar[frozenset[Need]] = frozenset()

    rows: int = 128
    exposures: float = 14
    gap: float = 0.5
    turned: float = 0.2

    def passes(self, subject: Subject) -> float:
        n = min(self.rows, len(subject.rows)) + min(self.rows, len(subject.validation))
        return n / 3 / max(len(subject.rows), 1)

    def __call__(self, subject: Subject) -> Report:
        cluster_N = row_clusters(subject.rows)
        findings = [self._exposures(subject, cluster_N), self._gap(subject)]
        if subject.trace is not None and subject.index is not None:
            findings.append(self._clusters(subject))
        return Report(findings, plots=[_plot(cluster_N, _epochs(subject))])

    def _exposures(self, subject: Subject, cluster_N: np.ndarray) -> Finding:
        name, copies = "repetition: exposures", int(np.bincount(cluster_N).max())
        epochs = _epochs(subject)
        if epochs is None:
            because = f"How many epochs the model was trained for is not known; within one, a text is seen {copies} times at most."
            return Finding(name, "unknown", because, value=float(copies), unit="exposures an epoch", n=len(subject.rows),
                           next_step="Name the Trainer's folder when indexing: --from-run OUTPUT.")  # fmt: skip
        most = epochs * copies
        status = graded(most, warn=self.exposures, fail=np.inf)
        because = f"A row was seen {epochs:g} times; the most repeated text, of {copies} copies, {most:g} times."
        step = "Hold training loss against validation loss, and read scores by cluster of near-duplicates."
        return _finding(name, status, because, Figure(most, None, len(subject.rows), "rows"), "exposures", step)

    def _gap(self, subject: Subject) -> Finding:
        name = "repetition: gap"
        if not subject.validation:
            because = "Not measured: there are no rows of the same kind that were not trained on."
            return Finding(name, "unknown", because, next_step="Give some: --validation FILE.")
        unit = "nats per row" if any(row.label is not None for row in subject.rows) else "nats per target"
        trained = _Losses.of(subject, subject.examples(some_positions(subject, self.rows, key=6)))
        rng = np.random.default_rng([subject.seed, 7])
        held = list(rng.permutation(len(subject.validation))[: self.rows])
        unseen = _Losses.of(subject, [subject.validation[int(i)] for i in held])
        value = unseen.mean - trained.mean
        interval = None
        if min(len(trained.loss_S), len(unseen.loss_S)) > 1:
            spread_B = unseen.resampled(subject.seed) - trained.resampled(subject.seed + 1)
            interval = percentiles(spread_B, min(len(trained.loss_S), len(unseen.loss_S)))
        status = "warn" if (interval[0] if interval else value) > self.gap else "ok"
        because = (
            f"The loss is {trained.mean:.3g} {unit} on {len(trained.loss_S)} training rows and {unseen.mean:.3g} on "
            f"{len(unseen.loss_S)} that were not trained on: {value:.2g} more."
        )
        step = "The rows are learned by heart: trace an earlier checkpoint, or train fewer epochs or with dropout (benchmarks.repetition)."
        return _finding(name, status, because, Figure(value, interval, len(unseen.loss_S), "rows"), unit, step)

    def _clusters(self, subject: Subject) -> Finding:
        name, scores = "repetition: clusters", _in_nats(subject)
        if scores is None:
            because = "Not measured: no method of the trace predicts a change, and a sum of ranks means nothing."
            return Finding(name, "unknown", because, next_step="Trace with grad_dot or an influence beside it.")
        grouped = group_scores(scores, subject.stored, by=NEAR_DUPLICATES)
        if not (grouped.n_rows_G > 1).any():
            return Finding(
                name, "ok", f"No two of {len(subject.stored)} rows are copies: a row's score is its text's.", n=len(subject.stored)
            )
        ratio = mean_figure(_ratios(scores, grouped, subject), seed=subject.seed)
        moved_Q = _moved(scores, grouped, subject)
        turned = float(np.nanmean(moved_Q)) if np.isfinite(moved_Q).any() else 0.0
        status = graded(turned, warn=self.turned, fail=1)
        because = (
            f"By {scores.method}, the strongest cluster of copies has {ratio.value:.1f} times the influence of its strongest copy alone; "
            f"for {turned:.0%} of {ratio.n} queries the first cluster is not the first row's."
        )
        step = 'Read this trace by cluster (`Trace.by_group("near_duplicates")`): removing one copy of many changes next to nothing.'
        return _finding(name, status, because, ratio, "cluster over copy", step)


@dataclass(frozen=True, eq=False)
class _Losses:
    """Of some rows: sums over targets, and how many targets (one for a class)."""

    loss_S: np.ndarray
    targets_S: np.ndarray

    @staticmethod
    def of(subject: Subject, rows: Sequence[Example]) -> _Losses:
        loss_S, targets_S = losses(subject.session, rows), np.array([row.n_loss_tokens if row.label is None else 1 for row in rows])
        known_S = np.isfinite(loss_S) & (targets_S > 0)
        return _Losses(loss_S[known_S], targets_S[known_S].astype(np.float64))

    @property
    def mean(self) -> float:
        """Per target."""
        return float(self.loss_S.sum() / self.targets_S.sum()) if len(self.loss_S) else np.nan

    def resampled(self, seed: int) -> np.ndarray:
        """[B] the mean in resamples of the rows."""
        drawn_BS = weights(len(self.loss_S), seed=seed)
        return drawn_BS @ self.loss_S / (drawn_BS @ self.targets_S)


def _epochs(subject: Subject) -> float | None:
    epochs = subject.training.get("epochs")
    return None if epochs is None else float(epochs)


def _in_nats(subject: Subject) -> Scores | None:
    """The primary method's scores where they predict a change, else those of the first method that does."""
    found = [scores for scores in (subject.scores, *subject.asked.scores.values()) if adds_up(scores)]
    return found[0] if found else None


def _ratios(scores: Scores, grouped: GroupScores, subject: Subject) -> np.ndarray:
    """[Q] `|sum over a cluster| / |its largest score|` of each query's strongest cluster of two rows or more."""
    members_G = _members(grouped, subject)
    several_G = np.flatnonzero(grouped.n_rows_G > 1)
    found = []
    for values_N, values_G in zip(scores.values_QN.astype(np.float64), grouped.values_QG, strict=True):
        sizes = np.nan_to_num(np.abs(values_G[several_G]))
        best = int(several_G[sizes.argmax()])
        single = float(np.nanmax(np.abs(values_N[members_G[best]]))) if sizes.max() > 0 else 0.0
        found.append(float(sizes.max()) / single if single else np.nan)
    return np.array(found)


def _moved(scores: Scores, grouped: GroupScores, subject: Subject) -> np.ndarray:
    """[Q] 1 where the cluster of the largest sum is not the cluster of the row of the largest score, NaN where nothing is scored."""
    members_G = _members(grouped, subject)
    cluster_N = np.empty(len(subject.stored), dtype=int)
    for g, members in enumerate(members_G):
        cluster_N[members] = g
    known_Q = np.isfinite(scores.values_QN).any(1)
    rows_Q = np.where(np.isnan(scores.values_QN), -np.inf, scores.values_QN).argmax(1)
    groups_Q = np.where(np.isnan(grouped.values_QG), -np.inf, grouped.values_QG).argmax(1)
    return np.where(known_Q, (cluster_N[rows_Q] != groups_Q).astype(float), np.nan)


def _members(grouped: GroupScores, subject: Subject) -> list[np.ndarray]:
    """Positions of the rows of each group."""
    keys = np.array(row_keys(subject.stored, NEAR_DUPLICATES), dtype=object)
    return [np.flatnonzero(keys == group) for group in grouped.groups]


def _plot(cluster_N: np.ndarray, epochs: float | None) -> Plot:
    """How many rows were seen how often, with their copies."""
    seen_N = np.bincount(cluster_N)[cluster_N] * (epochs or 1)
    values, counts = np.unique(seen_N, return_counts=True)
    unit = "exposures of the row's text" + ("" if epochs else " in one epoch")
    series = Series("rows", [f"{value:g}" for value in values], counts.astype(float).tolist())
    return Plot("How often a row's text was seen", unit, "rows", [series], kind="bar")


def _finding(name: str, status: FindingStatus, because: str, figure: Figure, unit: str, step: str) -> Finding:
    value = figure.value if np.isfinite(figure.value) else None
    return Finding(
        name, status, because, value=value, unit=unit, interval=figure.interval, n=figure.n,
        next_step=None if status == "ok" else step,
    )  # fmt: skip
