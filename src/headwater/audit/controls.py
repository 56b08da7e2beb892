"""What finds the same rows without the model's gradients, or without what the model has learned. Q queries · N training rows

A trace that a text search repeats may be right and says nothing that the search does not. One that a model with shuffled weights repeats
is about the texts and the architecture, not about what was learned.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from headwater import methods
from headwater.audit.check import Need, Report
from headwater.audit.subject import Subject
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.overlap import overlap_Q, rank_correlation_Q
from headwater.evaluate.ranking import Ranking
from headwater.index.queries import query_index
from headwater.model import measures
from headwater.model.session import Session
from headwater.types import Finding, FindingStatus, Scores, UsageError

TEXT, SHAPE = ("lexical", "repsim"), ("length", "loss", "random")
"""Controls that may find the right rows for another reason, and those that should find nothing."""


@dataclass(frozen=True)
class Controls:
    """Overlap of the named groups with what each control puts first, and the ranking that survives when the weights are shuffled.

    `controls: lexical` fails where BM25 names nearly the same rows (`same` of them, with the interval): it solves this alone.
    `controls: length`, `loss`, `random`: rank correlation with the scores; above `size` a score is little more than that.
    `controls: randomised`: the rank correlation of the scores with those of the same method on a model whose every tensor is shuffled;
    above `survives` with its interval, the ranking does not depend on what was learned. Cost: one pass over the rows, for the last.
    """

    name: ClassVar[str] = "controls"
    summary: ClassVar[str] = "random, length, loss, BM25, embedding, RepSim and shuffled weights: who finds the same rows?"
    reference: ClassVar[str] = "Adebayo et al. 2018 (shuffled weights)"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    same: float = 0.8
    size: float = 0.7
    survives: float = 0.8
    encoder: str | None = None  # for the embedding

    def passes(self, subject: Subject) -> float:
        return 1.0

    def __call__(self, subject: Subject) -> Report:
        texts = [*TEXT, *(["embedding"] if self.encoder else [])]
        overlaps = {name: self._overlap_Q(subject, name) for name in texts}
        findings = [self._text(subject, name, overlap) for name, overlap in overlaps.items()]
        findings += [self._shape(subject, name) for name in SHAPE]
        if self.encoder is None:
            findings.append(
                Finding("controls: embedding", "unknown", "Not measured: no encoder is named.", next_step="Give the check one.")
            )
        evidence = {name: overlaps[name] for name in TEXT}
        randomised_Q, finding = self._randomised(subject)
        return Report([*findings, finding], evidence | {"randomised": randomised_Q})

    def _overlap_Q(self, subject: Subject, name: str) -> np.ndarray:
        options = {"encoder": self.encoder} if name == "embedding" else {}
        scores = control_scores(subject, name, **options)
        return overlap_Q(Ranking(subject.scores.values_QN), Ranking(scores.values_QN), subject.asked.k)

    def _text(self, subject: Subject, name: str, overlap: np.ndarray) -> Finding:
        figure, k = mean_figure(overlap, seed=subject.seed), subject.asked.k
        chance = k / max(len(subject.rows), 1)
        alone = _low(figure) > self.same
        because = f"Of the first {k} rows {name} names {figure.value:.0%} as well (by chance {chance:.0%})."
        step = f"{name} alone answers this: what the gradients add has to be shown on queries that share no words with their causes."
        if subject.asked.primary == name:
            why = f"{name} is the primary method of this trace."
            return Finding(f"controls: {name}", "unknown", why, next_step="Trace by a gradient method.")
        return _finding(name, figure, ("fail" if name == "lexical" else "warn") if alone else "ok", because, step)

    def _shape(self, subject: Subject, name: str) -> Finding:
        figure = mean_figure(_correlation_Q(subject.scores, control_scores(subject, name)), seed=subject.seed)
        sized = max(_low(figure), _low(Figure(-figure.value, _flipped(figure), figure.n, figure.over))) > self.size
        because = f"Rank correlation of the scores with {name}: {figure.value:.2f}."
        step = "The score is little more than that: trace with a method that normalises (grad_cos, relatif)."
        return _finding(name, figure, "fail" if sized else "ok", because, step)

    def _randomised(self, subject: Subject) -> tuple[np.ndarray, Finding]:
        """[Q] the rank correlation with the scores under shuffled weights, and what it says."""
        nothing = np.full(len(subject.asked.queries), np.nan)
        try:
            shuffled = scores_under(subject, shuffled_session(subject.session, seed=subject.seed))
        except UsageError as error:
            return nothing, Finding("controls: randomised", "unknown", f"Not measured: {error}", next_step="Trace by grad_cos as well.")
        correlation_Q = _correlation_Q(subject.scores, shuffled)
        figure = mean_figure(correlation_Q, seed=subject.seed)
        survives = _low(figure) > self.survives
        because = f"With every weight tensor shuffled, the ranking correlates {figure.value:.2f} with the trace's."
        step = "The ranking does not depend on what was learned: believe nothing of it that a text search does not say."
        return correlation_Q, _finding("randomised", figure, "fail" if survives else "ok", because, step)


def _finding(name: str, figure: Figure, status: FindingStatus, because: str, step: str) -> Finding:
    """`unknown` where there is no interval: of one query the figure may be anything, of none it is undefined."""
    if figure.interval is None:
        told = because if figure.n else "No query of the trace ranks its rows."
        few = "Trace more queries together: one has no interval."
        value = float(figure.value) if figure.n else None
        return Finding(f"controls: {name}", "unknown", told, value, n=figure.n, next_step=few)
    return Finding(
        f"controls: {name}", status, because, float(figure.value), None, figure.interval, figure.n, None if status == "ok" else step
    )


def control_scores(subject: Subject, name: str, **options: str | None) -> Scores:
    """The trace's own scores of that method, or new ones."""
    if name in subject.asked.scores:
        return subject.asked.scores[name]
    method = methods.get(name, **options)
    queries = query_index(subject.session, subject.stored.layout, subject.asked.queries, subject.asked.measure)
    return method.score(method.fit(subject.stored), subject.stored, queries)


def shuffled_session(session: Session, *, seed: int = 0) -> Session:
    """The same network with the numbers of every parameter in another order: nothing that was learned is left, but for their sizes."""
    network: nn.Module = copy.deepcopy(session.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(session, model=network)


def scores_under(subject: Subject, session: Session) -> Scores:
    """The primary method's scores of the same rows and queries by another model, in the same sketch. Cost: a pass over the rows.

    Raises UsageError for a method that needs more than stored features of rows and queries (members, the live model).
    """
    asked, index = subject.asked, subject.stored
    method = methods.get(asked.primary, **asked.method_options)
    own = {"gradient", "representation", "representation_response"}
    if not method.requires <= own:
        raise UsageError(f"{method.name} needs {', '.join(sorted(method.requires - own))}, which another model does not have here")
    rows = query_index(session, index.layout, subject.rows, measures.LOSS)
    rows.gradient_of = "loss"
    queries = query_index(session, index.layout, asked.queries, asked.measure)
    return method.score(method.fit(rows), rows, queries)


def _correlation_Q(scores: Scores, other: Scores) -> np.ndarray:
    return rank_correlation_Q(Ranking(scores.values_QN), Ranking(other.values_QN))


def _low(figure: Figure) -> float:
    return figure.interval[0] if figure.interval is not None else -np.inf


def _flipped(figure: Figure) -> tuple[float, float] | None:
    return None if figure.interval is None else (-figure.interval[1], -figure.interval[0])
