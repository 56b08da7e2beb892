"""Headwater: each job as `headwater index` and `headwater trace` do it, from tokenised rows, files and their fsyncs included.

The exact EK-FAC runs twice: on all rows for its figure, and on as many as the peers', for the agreement of the scores. Its option
`labels` is "true" (the empirical Fisher, which the peers' scores are of) or "sampled" (the true Fisher).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.peers.task import Task, main
from headwater.curvature.ekfac import EKFAC
from headwater.curvature.fisher import Fisher
from headwater.gradient.live import LiveSource
from headwater.gradient.scope import find_scope, make_layout
from headwater.gradient.sketch import SketchSpec
from headwater.index.build import fill, settle
from headwater.index.live import LiveIndex, LiveQueries
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index
from headwater.index.read import StoredIndex
from headwater.index.spec import IndexSpec
from headwater.index.table import import_pandas
from headwater.index.write import Writer
from headwater.methods import GradDot
from headwater.methods.influence import Influence
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import quiet
from headwater.recipe import IndexRecipe
from headwater.types import Example, Method, State

RANK = 40
SCOPES = {"w1": ("*_proj.weight",), "w2": ("*lora_*",)}
MEASURE = measures.get("response_log_probability")


@dataclass(frozen=True)
class Workload:
    """The workload as headwater's own types."""

    session: Session
    rows: list[Example]
    queries: list[Example]
    include: tuple[str, ...]

    @staticmethod
    def read(task: Task) -> Workload:
        session = Session(task.network(), None, "causal-lm", name="benchmark")
        return Workload(session, _examples(task.rows(), "row"), _examples(task.queries(), "query"), SCOPES[task.workload])

    def source(self, **options: Any) -> LiveSource:
        layout = make_layout(self.session.model, find_scope(self.session.model, include=self.include), SketchSpec(rank=None))
        return LiveSource(self.session, self.rows, layout, **options)

    def index(self, task: Task, **options: Any) -> StoredIndex:
        """Into files that are thrown away with the job's folder."""
        recipe = IndexRecipe.parse({"model": {"path": "-"}, "data": {"source": "-"}, "scope": {"include": self.include}, **options})
        layout = settle(recipe, self.session, self.rows).layout
        spec = IndexSpec(layout=layout, dtype=recipe.store.dtype, hidden_size=self.session.hidden_size, shard_rows=recipe.store.shard_rows)
        writer = Writer.open(task.scratch(), spec)
        fill(writer, writer.begin("benchmark", len(self.rows)), self.rows, self.session, layout, recipe.engine.token_budget)
        return StoredIndex.open(task.scratch())

    def scores(self, method: Method, state: State, index: StoredIndex) -> np.ndarray:
        queries = query_index(self.session, index.layout, self.queries, MEASURE)
        return method.score(state, index, queries).values_QN


def _examples(rows: list[np.ndarray], name: str) -> list[Example]:
    return [Example(id=f"{name}-{i}", tokens=tokens, loss_mask=np.arange(len(tokens)) > 0) for i, tokens in enumerate(rows)]


@contextmanager
def staged(task: Task, name: str) -> Iterator[None]:
    with quiet(), task.stage(name):
        yield


def ekfac(task: Task) -> np.ndarray:
    """Nothing sketched. LoRA: one forward pass serves both labels' backward passes, and the rows are kept in memory."""
    work, labels = Workload.read(task), task.options.get("labels", "true")
    passes = ", rows kept: one forward and two backward passes, a third for some batches" if labels == "sampled" else ""
    task.notes.append(f"{labels} labels{passes}")
    source = work.source(keep=tuple(dict.fromkeys(("true", labels))), folder=task.scratch())
    rows = LiveIndex(MemoryIndex([row.id for row in work.rows], source.layout, "loss", {}), source)
    queries = LiveQueries(MemoryIndex([query.id for query in work.queries], source.layout, "measure", {}), source, work.queries, MEASURE)
    method = Influence(EKFAC(labels=labels), mode="exact")
    with staged(task, "fit"):
        state = method.fit(rows)
    with staged(task, "scores"):
        scores = method.score(state, rows, queries)
    return scores.values_QN


def graddot(task: Task) -> np.ndarray:
    import_pandas()  # an import, as all others before the clock runs
    work, method = Workload.read(task), GradDot()
    with staged(task, "index"):
        index = work.index(task, sketch={"rank": None}, store={"dtype": "float32"})
    with staged(task, "queries"):
        return work.scores(method, method.fit(index), index) * len(index)  # the peers have no 1/N


def ekfac_index(task: Task) -> np.ndarray:
    """EK-FAC of the stored sketch: no pass beyond the index's, and none for the next queries but their own."""
    import_pandas()  # an import, as all others before the clock runs
    work, method = Workload.read(task), Influence(EKFAC(labels="true"))
    task.notes.append(f"sketch of {RANK} x {RANK} numbers a block, int8")
    with staged(task, "index"):
        index = work.index(task, sketch={"rank": RANK}, store={"dtype": "int8"})
    task.values["bytes_per_row"] = round(sum(path.stat().st_size for path in (task.scratch() / "index" / "shards").iterdir()) / task.n_rows)
    with staged(task, "fit"):
        state = method.fit(index)
    with staged(task, "queries"):
        scores_QN = work.scores(method, state, index)
    with staged(task, "next queries"):  # the same number of others, on an index that is opened anew
        further = [replace(query, id=f"next-{i}", tokens=query.tokens[::-1].copy()) for i, query in enumerate(work.queries)]
        replace(work, queries=further).scores(method, state, StoredIndex.open(task.scratch()))
    return scores_QN


def accuracy(task: Task) -> None:
    """Agreement of `ekfac_cg` with the exact damped Gauss-Newton influence, which `python -m benchmarks.accuracy` keeps."""
    from benchmarks.accuracy import REFERENCE, agreement, sides  # reads scipy.stats: 50 MB that no other job is to have in its peak
    from benchmarks.accuracy import scores as method_scores

    with np.load(REFERENCE) as kept:
        exact_QN = kept["scores_QN"]
    index, asked = sides(exact_QN.shape[1], exact_QN.shape[0], torch.float32)
    for name in ("identity", "ekfac", "ekfac_cg"):
        with staged(task, name):
            values_QN, solve = method_scores(name, {}, index, asked)
        task.values[f"{name}_spearman"] = round(agreement(values_QN, exact_QN), 4)
    task.notes.append(f"{exact_QN.shape[1]} rows, {exact_QN.shape[0]} queries; ekfac_cg {solve['steps']} steps")


def fisher(task: Task) -> np.ndarray:
    import_pandas()  # an import, as all others before the clock runs
    work, method = Workload.read(task), Influence(Fisher())
    with staged(task, "index"):
        index = work.index(task, sketch={"rank": None}, store={"dtype": "float32"})
    with staged(task, "fit"):
        state = method.fit(index)
    with staged(task, "queries"):
        return work.scores(method, state, index)


if __name__ == "__main__":
    main(
        "headwater",
        {"ekfac": ekfac, "ekfac_all": ekfac, "graddot": graddot, "fisher": fisher, "ekfac_index": ekfac_index, "accuracy": accuracy},
    )
