"""Sketch: what the random projection of gradients costs. Q queries · N training rows · S sampled rows · K rows listed · D stored numbers"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, ClassVar

import numpy as np

from headwater import methods
from headwater.audit.check import Need, Report
from headwater.audit.numerics import graded
from headwater.audit.sampled import passed
from headwater.audit.subject import Subject
from headwater.evaluate.figure import Figure, mean_figure
from headwater.evaluate.overlap import overlap_Q
from headwater.evaluate.ranking import Ranking
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index, query_members
from headwater.methods.shared import MEMBERS, wanted_roles
from headwater.rank.answer import KERNELS
from headwater.types import Example, Finding, Index, Method, Scores

SEEDS_APART = 10_007  # the second sketch's seed is the first one's plus this: no member of a run has it by habit
MORE_SEEDS = "Index with --members seed --sketch-seeds 1,2 for an overlap over all rows; a larger --set sketch.rank makes it better."


@dataclass(frozen=True)
class Sketch:
    """The sketch's standard error at the listed rows, and how many of the first k another sketch seed would list too.

    Errors: the median of `error / |score|`; above `noisy` (a first row two errors from nothing) is `warn`, above `drowned` `fail`.
    Overlap: below `steady` `warn`; `fail` where its interval lies below `shaky`, so that most of what is listed is the seed's choice.
    Members of role "seed" are taken where there are any. Else both seeds rank a sample, the first rows of each query several lists deep and
    `rows` random ones, the second sketched anew from the live model: rivals that the sample lacks are not seen, so it flatters.
    """

    name: ClassVar[str] = "sketch"
    summary: ClassVar[str] = "standard error of the first rows' scores; overlap of the first k under another sketch seed"
    reference: ClassVar[str] = "Searle, Casella and McCulloch 1992"
    needs: ClassVar[frozenset[Need]] = frozenset({"index", "trace"})

    rows: int = 128
    queries: int = 16
    depth: int = 4  # lists of k rows
    noisy: float = 0.5
    drowned: float = 1.0
    steady: float = 0.7
    shaky: float = 0.5

    def passes(self, subject: Subject) -> float:
        return min(1.0, (self.rows + self.depth * 10 * self.queries) / max(len(subject.rows), 1))

    def __call__(self, subject: Subject) -> Report:
        method = methods.get(subject.asked.primary, **subject.asked.method_options)
        if why := _untouched(subject, method):
            return Report([
                Finding("sketch: standard error", "ok", why, value=0.0, unit="share of the score"),
                Finding("sketch: seeds", "ok", why, value=1.0, unit="share of the first k"),
            ])  # fmt: skip
        return Report([self._errors(subject), self._seeds(subject, method)])

    def _errors(self, subject: Subject) -> Finding:
        name = "sketch: standard error"
        shares = np.concatenate([_relative_errors(subject, q) for q in range(len(subject.group_QK))])
        known = shares[np.isfinite(shares)]
        if not len(known):
            because = f"{subject.asked.primary} has no standard error for the rows it lists."
            return Finding(name, "unknown", because, next_step="Trace with grad_dot or grad_cos beside it: theirs is known.")
        value = float(np.median(known))
        status = graded(value, warn=self.noisy, fail=self.drowned)
        because = f"The sketch's standard error is {value:.2g} of the score, the median of {len(known)} listed rows."
        low, high = np.quantile(known, [0.25, 0.75])
        because += f" Half of them lie between {low:.2g} and {high:.2g}."
        return Finding(
            name, status, because, value=value, unit="share of the score", n=len(known), next_step=_step(status, _larger(subject))
        )

    def _seeds(self, subject: Subject, method: Method) -> Finding:
        name = "sketch: seeds"
        pairs = _by_members(subject, method) if subject.stored.members("seed") else None
        if pairs is None and (wanted_roles(method, subject.stored) or not method.requires <= {"gradient"}):
            because = f"Not measured: {method.name} needs {', '.join(sorted(method.requires))}, which cannot be sketched again on a sample."
            return Finding(name, "unknown", because, next_step=MORE_SEEDS)
        over, sample = "all rows under the seeds of the run's members", pairs
        if sample is None:
            sample, over = self._again(subject, method)
        figure = _overlap(sample, subject.asked.k)
        if not figure.n:
            return Finding(name, "unknown", "No query ranks any row.", next_step="Look at the scores: they are constant.")
        low_enough = figure.interval is not None and figure.interval[1] < self.shaky
        status = "fail" if low_enough else "warn" if figure.value < self.steady else "ok"
        because = f"Another sketch seed lists {figure.value:.0%} of the same first {subject.asked.k} rows ({figure.n} queries, {over})."
        return Finding(
            name, status, because, value=figure.value, unit="share of the first k", interval=figure.interval, n=figure.n,
            next_step=_step(status, _larger(subject)),
        )  # fmt: skip

    def _again(self, subject: Subject, method: Method) -> tuple[list[tuple[Scores, Scores]], str]:
        """The two seeds' scores of a sample, by the same method on the same rows."""
        index, asked = subject.stored, list(subject.asked.queries)[: self.queries]
        chosen = self._sample(subject, len(asked))
        rows, ids = subject.examples(chosen), [subject.stored.ids[n] for n in chosen]
        layout = replace(index.layout, sketch_seed=index.layout.sketch_seed + SEEDS_APART)
        columns = {name: index.column(name)[chosen] for name in ("bad", "loss", "n_tokens", "n_loss_tokens")}
        first = MemoryIndex(ids, index.layout, "loss", {"gradient": index.take("gradient", chosen)}, columns)
        again = MemoryIndex(ids, layout, "loss", {"gradient": passed(subject.session, layout, rows).gradient_SD}, columns)
        pair = tuple(_scored(subject, method, rows_index, asked) for rows_index in (first, again))
        return [(pair[0], pair[1])], f"{len(chosen)} sampled rows of {len(index)}"

    def _sample(self, subject: Subject, n_queries: int) -> np.ndarray:
        deep = self.depth * subject.asked.k
        first = np.concatenate([Ranking(subject.scores.values_QN[q : q + 1]).top_QK(deep)[0] for q in range(n_queries)])
        good = np.flatnonzero(~np.asarray(subject.stored.column("bad")).astype(bool))
        others = np.random.default_rng([subject.seed, 5]).choice(good, size=min(self.rows, len(good)), replace=False)
        return np.intersect1d(np.union1d(first[first >= 0], others), good)


def _untouched(subject: Subject, method: Method) -> str:
    """Why no sketch stands between the method and the answer; "" where one does."""
    sketched = [block for block in subject.stored.layout.blocks if block.sketched]
    if not sketched:
        return f"Every gradient is kept whole ({subject.stored.layout.size:,} numbers a row): nothing is sketched."
    if not any(feature.startswith(("gradient", MEMBERS)) for feature in method.requires):
        return f"{method.name}, the trace's primary method, reads no gradient: the sketch is not in its answer."
    if "gradient_whole" in method.requires and "gradient" not in method.requires:
        return f"{method.name} scores whole gradients: the sketch is not in its answer."
    return ""


def _relative_errors(subject: Subject, q: int) -> np.ndarray:
    """[K] error over score of the rows of a named group; NaN where the error is not known. The method's own, else the kernel's."""
    scores, at_K = subject.scores, subject.group_QK[q]
    size_K = np.abs(scores.values_QN[q][at_K])
    if scores.standard_errors_QN is not None:
        return scores.standard_errors_QN[q][at_K] / size_K
    estimate = KERNELS.get(str(scores.provenance.get("kernel")))
    if estimate is None or scores.provenance.get("feature") != "gradient" or not len(at_K):
        return np.full(len(at_K), np.nan)
    query = query_index(subject.session, subject.stored.layout, [subject.asked.queries[q]], subject.asked.measure)
    return estimate(subject.stored, query.take("gradient", [0]), subject.stored.take("gradient", at_K)[None])[0].numpy() / size_K


def _by_members(subject: Subject, method: Method) -> list[tuple[Scores, Scores]] | None:
    """The trace's scores beside those of each further seed; None where the method needs more than a member has."""
    index = subject.stored
    members = [member for member in index.members("seed") if member.index is not index]
    if not members or wanted_roles(method, index) or any(not method.requires <= member.index.features for member in members):
        return None
    asked = {member.name: member.index for member in query_members(
        subject.session, index, ["seed"], subject.asked.queries, subject.asked.measure)}  # fmt: skip
    return [(subject.scores, _score(method, member.index, asked[member.name])) for member in members]


def _scored(subject: Subject, method: Method, rows: Index, asked: Sequence[Example]) -> Scores:
    return _score(method, rows, query_index(subject.session, rows.layout, asked, subject.asked.measure))


def _score(method: Method, rows: Index, queries: Index) -> Scores:
    state: Any = method.fit(rows)
    if hasattr(method, "for_task"):
        state = method.for_task(state, rows, queries)  # pyright: ignore[reportAttributeAccessIssue]
    return method.score(state, rows, queries)


def _overlap(pairs: Sequence[tuple[Scores, Scores]], k: int) -> Figure:
    """The mean over queries of their mean overlap over the pairs."""
    each = np.stack([overlap_Q(Ranking(one.values_QN), Ranking(other.values_QN), k) for one, other in pairs])
    known_Q = np.isfinite(each).any(0)
    return mean_figure(np.array([np.nanmean(values) for values in each.T[known_Q]]))


def _larger(subject: Subject) -> str:
    """Twice the rank that the index has."""
    rank = max(isqrt(block.size) for block in subject.stored.layout.blocks if block.sketched)
    return (
        f"Index with a larger sketch (--set sketch.rank={2 * rank}, four times the disk), or trace with mode=exact, which sketches nothing."
    )


def _step(status: str, step: str) -> str | None:
    return None if status == "ok" else step
