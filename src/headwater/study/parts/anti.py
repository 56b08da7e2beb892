"""Anti-documents: does a method follow a query's words, or its behaviour? Two rows for each query that tell the two apart.

Q queries · A anti-documents, two of each query · N training rows
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from headwater import api, methods
from headwater.audit.check import Plot
from headwater.evaluate.figure import Figure, mean_figure, proportion_figure
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index
from headwater.methods.influence import Influence
from headwater.methods.shared import whole
from headwater.model import measures
from headwater.study.cells import Cell, Place
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.settings import WORDS, Setting, bars, beyond, fisher, setting
from headwater.study.world import World, digest, kept
from headwater.truth.tail_patch import Patch, changes, tail_patch
from headwater.types import Example, Finding, HeadwaterError, Index, Scores

PLAIN = ("grad_dot", "grad_cos", "datainf", "repsim", "repsim_response", "rept")
SETTINGS = (*map(setting, PLAIN), WORDS, setting("tfidf", text="both"), fisher(0.1), fisher(100))
SIDES = ("words", "behaviour")
TAIL_PATCH = "tail patch"
PREFERS, AGREES = "prefers behaviour to words", "agrees with the tail patch"
TEXTS = ("prompt", "response")


@dataclass(frozen=True)
class Anti:
    """For each query one row with its words and without its behaviour, and one with its behaviour in other words; neither was trained on.

    The share of queries for which a method scores the behaviour's row above that of the words (a tie is no preference), with Wilson's
    interval. What a method learns it learns from the training rows: curvatures, and how rare a word is; only norms are of the rows scored.
    Ground truth is a tail patch: `steps` steps of AdamW on the one row alone from the final weights, and what that does to the query's
    measure. Cost: a pass over 2 Q rows, and the steps on each.
    """

    name = "anti"
    summary = "a query's words against its behaviour: rows with the one and without the other, and a tail patch on each"
    metrics = (PREFERS, AGREES, "change of the measure")

    settings: tuple[Setting, ...] = SETTINGS
    steps: int = 5
    lr_share: float = 0.1  # of the training's: by a whole one a step overshoots, and every document lowers the measure

    def unfit(self, world: World) -> str:
        if not world.task.anti:
            return "this task has no anti-documents"
        return "" if world.model.task == "causal-lm" else "anti-documents are texts with an answer, and the model is a classifier"

    def __call__(self, world: World) -> Outcome:
        start = time.monotonic()
        here, pairs = place(self, world), Pairs(world)
        patch = Patch(lr=self.lr_share * world.model.lr, steps=self.steps, optimizer="adamw")
        truth = Preference(setting(TAIL_PATCH), pairs.patched(patch))
        preferences, failed = [], []
        for tried in self.settings:
            try:
                preferences.append(Preference(tried, pairs.scores(tried)))
            except HeadwaterError as error:
                failed.append((tried, str(error)))
        cells = [*patch_cells(here, truth, world.measure.unit), *(cell for one in preferences for cell in one.cells(here, truth))]
        cells += [here.missing(tried.method, metric, why, variant=tried.variant) for tried, why in failed for metric in (PREFERS, AGREES)]
        findings = [about_truth(truth), *(finding(one, truth) for one in preferences)]
        return Outcome(cells, findings, [plot(preferences, truth)], time.monotonic() - start)


# -------------------------------------------------------------------------------------------------------- the documents


@dataclass(frozen=True, eq=False)
class Pairs:
    """The anti-documents of a world as its final model sees them. Scores and patches are kept in the world's folder."""

    world: World

    @cached_property
    def examples(self) -> list[Example]:
        """[A] words and behaviour of the first query, of the second, ..."""
        rows = [asdict(row) for pair in self.world.task.anti for row in (pair.words, pair.behaviour)]
        return api.encoded_queries(self.world.run, [{"id": f"anti-{a}", **row} for a, row in enumerate(rows)], self.world.session)

    @cached_property
    def index(self) -> MemoryIndex:
        """With the gradient of each document's loss, as training rows have: minus that of its response's log-probability."""
        stored, log_probability = self.world.index, measures.get("response_log_probability")
        asked = query_index(self.world.session, stored.layout, self.examples, log_probability, extra=stored.spec.extra)
        features = {name: whole(asked, name) for name in asked.features}
        features["gradient"] = -features["gradient"]
        return MemoryIndex(asked.ids, stored.layout, "loss", features, {name: asked.column(name) for name in (*TEXTS, "bad")})

    def scores(self, tried: Setting) -> np.ndarray:
        """[Q, 2] of each query's own two documents, words first. Raises HeadwaterError for a method that cannot score them."""
        return self._kept(f"{tried.method}-{digest(tried.options)}", lambda: score(self.world, self.index, tried), tried.method)

    def patched(self, patch: Patch) -> np.ndarray:
        """[Q, 2] the change of each query's measure after the patch by each of its documents."""
        return self._kept(f"patch-{digest(asdict(patch))}", lambda: self._patched(patch), TAIL_PATCH)

    def _patched(self, patch: Patch) -> np.ndarray:
        world, n = self.world, len(self.world.queries)
        own_AQ, scope = np.repeat(np.eye(n, dtype=bool), 2, axis=0), [block.name for block in world.index.layout.blocks]
        truth = tail_patch(world.session, self.examples, world.queries, patch, asked_DQ=own_AQ, scope=scope, measure=world.measure)
        return changes(truth).T

    def _kept(self, name: str, make: Callable[[], np.ndarray], method: str) -> np.ndarray:
        ids = tuple(query.id for query in self.world.queries)
        return kept(self.world.folder / "anti" / f"{name}.npz", lambda: Scores(own(make()), ids, SIDES, method, None)).values_QN


def own(values_QA: np.ndarray) -> np.ndarray:
    """[Q, 2] of [Q, 2 Q]: each query's own two."""
    queries = np.arange(len(values_QA))
    return np.stack([values_QA[queries, 2 * queries], values_QA[queries, 2 * queries + 1]], axis=1)


def score(world: World, documents: MemoryIndex, tried: Setting) -> np.ndarray:
    """[Q, A] scores of documents that were not trained on, by what the method learned from the training rows."""
    method: Any = methods.get(tried.method, **tried.options)
    if isinstance(method, Influence):
        solved_QD = method.solved(method.fit(world.index), world.index, world.asked)
        return (documents.products("gradient", solved_QD) / -len(world.index)).numpy()
    rows = with_training_texts(world.index, documents) if not method.requires else documents
    return method.score(method.fit(rows), rows, world.asked).values_QN[:, -len(documents) :]


def with_training_texts(index: Index, documents: MemoryIndex) -> MemoryIndex:
    """Texts alone, the documents after the training rows: how rare a word is, is a fact about the training rows."""
    columns = {name: [*index.column(name), *documents.column(name)] for name in TEXTS}
    return MemoryIndex([*index.ids, *documents.ids], index.layout, "loss", {}, columns)


# ---------------------------------------------------------------------------------------------------------- preferences


@dataclass(frozen=True, eq=False)
class Preference:
    """`scores_Q2`: words, behaviour."""

    tried: Setting
    scores_Q2: np.ndarray

    @property
    def prefers(self) -> Figure:
        return share(self.sign_Q > 0, np.isfinite(self.sign_Q))

    @property
    def sign_Q(self) -> np.ndarray:
        """1 where the behaviour's document is above that of the words, -1 below, 0 where they tie; NaN without a score."""
        return np.sign(self.scores_Q2[:, 1] - self.scores_Q2[:, 0])

    def agrees(self, truth: Preference) -> Figure:
        """The share of queries for which both prefer the same document, of those for which the truth prefers one."""
        return share(self.sign_Q == truth.sign_Q, np.isfinite(self.sign_Q) & np.isfinite(truth.sign_Q) & (truth.sign_Q != 0))

    def cells(self, here: Place, truth: Preference) -> Iterator[Cell]:
        yield here.cell(self.tried.method, PREFERS, self.prefers, variant=self.tried.variant)
        yield here.cell(
            self.tried.method, AGREES, self.agrees(truth), variant=self.tried.variant, because=UNDECIDED if not truth.decided else ""
        )

    @property
    def decided(self) -> bool:
        return bool((np.nan_to_num(self.sign_Q) != 0).any())


UNDECIDED = "the tail patch prefers neither document for any query"


def share(hits_Q: np.ndarray, known_Q: np.ndarray) -> Figure:
    return proportion_figure(int((hits_Q & known_Q).sum()), int(known_Q.sum()))


def patch_cells(here: Place, truth: Preference, unit: str | None) -> Iterator[Cell]:
    yield here.cell(TAIL_PATCH, PREFERS, truth.prefers)
    for name, change_Q in zip(SIDES, truth.scores_Q2.T, strict=True):
        yield here.cell(TAIL_PATCH, "change of the measure", mean_figure(change_Q), variant=f"document={name}", unit=unit)


def about_truth(truth: Preference) -> Finding:
    """Whether the pairs tell words from behaviour at all: a step on the behaviour's document should do more, and do good."""
    figure, above = truth.prefers, beyond(truth.prefers, 0.5)
    words, behaviour = (mean_figure(change_Q) for change_Q in truth.scores_Q2.T)
    helps = beyond(behaviour, 0.0)
    told = EXPECTED[above] if above is not True or helps else NO_HELP
    because = (
        f"Steps on the behaviour's document change the measure by {behaviour}, on that of the words by {words}: more for {figure} of the "
        f"queries. {told}"
    )
    step = None if above and helps else "Read what a method prefers here beside this, not as right or wrong by itself."
    status = "ok" if above and helps else "warn" if above is False else "unknown"
    return Finding("anti: tail patch", status, because, figure.value, None, figure.interval, figure.n, step)


EXPECTED = {
    True: "The behaviour is the cause, as intended.",
    False: "The words are: this model's behaviour hangs on them.",
    None: "Undetermined which of the two is the cause.",
}
NO_HELP = "The words do more harm, but the behaviour does not help: this model does not carry it over to other words."


def finding(one: Preference, truth: Preference) -> Finding:
    """`warn` where a method follows the words though a step on the behaviour helps more, or the reverse."""
    ours, theirs = beyond(one.prefers, 0.5), beyond(truth.prefers, 0.5)
    word = {True: "follows the behaviour", False: "follows the words", None: "is undetermined"}
    because = (
        f"It {word[ours]} (above the words for {one.prefers} of the queries); the tail patch {word[theirs]} "
        f"({truth.prefers}); they agree for {one.agrees(truth)}."
    )
    facts = {"value": one.prefers.value, "interval": one.prefers.interval, "n": one.prefers.n}
    if ours is None or theirs is None:
        return Finding(f"anti: {one.tried}", "unknown", because, **facts, next_step="More queries.")
    if ours == theirs:
        return Finding(f"anti: {one.tried}", "ok", because, **facts)
    return Finding(
        f"anti: {one.tried}", "warn", because, **facts, next_step="Do not read what this method names as the cause of the behaviour."
    )


def plot(preferences: Sequence[Preference], truth: Preference) -> Plot:
    shown = [truth, *preferences]
    names = [str(one.tried) for one in shown]
    drawn = [bars(PREFERS, names, [one.prefers for one in shown])]
    note = "Above one half: the row that shows the behaviour in other words; below: the row with the same words and without it."
    return Plot("Words or behaviour", "method", "share of queries", drawn, kind="bar", note=note)
