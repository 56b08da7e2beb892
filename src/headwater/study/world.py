"""A world: one task, one model that was trained on it, and what every part asks of the two.

Q queries · N training rows
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from headwater import api, methods
from headwater.atomic import read_json, write_atomically, write_json
from headwater.corpus import load_corpus
from headwater.evaluate.classes import ClassLabels, places
from headwater.index.examples import stored_examples
from headwater.index.live import LiveQueries, needs_model, open_live
from headwater.index.memory import MemoryIndex
from headwater.index.queries import query_index, query_members
from headwater.index.read import StoredIndex
from headwater.methods.shared import pairs
from headwater.model import measures
from headwater.model.session import Session, load_session
from headwater.rank.trace import default_measure
from headwater.study.models import Model
from headwater.study.tasks.task import Row, Task
from headwater.study.training import again, make_trainer
from headwater.training.folder import TrainerFolder
from headwater.truth.design import Designs
from headwater.truth.retrain import Experiment, Training, retrain
from headwater.types import Example, Index, IntegrityError, Measure, Member, MemberRole, Scores, Truth, UsageError

ROLES: tuple[MemberRole, ...] = ("checkpoint", "adam", "second_moment", "base")


@dataclass(frozen=True)
class Size:
    """How much of everything. The default fits two cores and twenty minutes for all made tasks, `QUICK` four minutes."""

    share: float = 1.0  # of a made task's rows
    queries: int = 40
    checkpoints: int = 5
    halves: int = 24
    retrainings: int = 2  # training seeds of each half
    removals: int = 3  # queries whose first rows are removed, for each method that is tried so
    epochs: float = 1.0  # times those of the model
    layers: int = 3  # of the tiny model, as are the next three
    hidden: int = 64
    vocabulary: int = 1024
    pretraining_texts: int = 24000
    is_quick: bool = False


QUICK = Size(share=0.4, queries=20, checkpoints=2, halves=8, retrainings=2, removals=1, epochs=0.5, pretraining_texts=6000, is_quick=True)


@dataclass(eq=False)
class World:
    """`base` is the folder or hub id of the model before training. `folder` keeps what was computed: what is there is not done again."""

    folder: Path
    task: Task
    model: Model
    base: str
    size: Size
    seed: int

    # ------------------------------------------------------------------------------------------------------- making it

    def claim(self) -> None:
        """Take the folder. Raises IntegrityError where it is another world's."""
        base = os.path.relpath(self.base, self.folder) if Path(self.base).exists() else self.base  # a study may be moved
        settings = {"task": self.task.name, "source": self.task.source, "model": asdict(self.model), "base": base, "seed": self.seed,
                    "size": asdict(self.size), "rows": digest([asdict(row) for row in self.task.rows])}  # fmt: skip
        settings, path = json.loads(json.dumps(settings, default=str)), self.folder / "world.json"
        if path.exists() and (there := read_json(path, way_out="Remove its folder to begin this world anew.")) != settings:
            differ = [name for name in settings if there.get(name) != settings[name]]
            raise IntegrityError(f"{self.folder} was begun with another {' and '.join(differ)}: choose another --out, or remove the folder")
        write_json(path, settings)

    def prepare(self) -> None:
        """Train and index, unless that is done."""
        self.claim()
        write_lines(self.rows_path, [asdict(row) for row in self.task.rows])
        write_lines(self.queries_path, [self._query(q, row) for q, row in enumerate(self.task.queries)])
        for name, stage in (("train", self._train), ("index", self._index)):
            self._once(name, stage)

    def _query(self, q: int, row: Row) -> dict[str, Any]:
        """A classifier's query has a class to explain in place of a response."""
        answer = {"label": row.variation} if self.model.task == "sequence-classification" else {"response": row.response}
        return {"id": f"query-{q}", "prompt": row.prompt, **answer, "variation": row.variation}

    def _once(self, name: str, stage: Callable[[], None]) -> None:
        done, start = self.folder / "stages" / f"{name}.json", time.monotonic()
        if not done.exists():
            stage()
            write_json(done, {"seconds": round(time.monotonic() - start, 2)})

    @property
    def stage_seconds(self) -> dict[str, float]:
        return {path.stem: json.loads(path.read_text())["seconds"] for path in sorted((self.folder / "stages").glob("*.json"))}

    def _train(self) -> None:
        trainer = make_trainer(
            self._encoded_rows(), self.seed, model=self.model, base=self.base, out=str(self.out), epochs=self.epochs,
            checkpoints=self.size.checkpoints,
        )  # fmt: skip
        trainer.train()
        trainer.save_model()

    def _index(self) -> None:
        roles = [role for role in ROLES if role != "base" or self.model.task == "causal-lm"]
        options = {"store.dtype": "float32", "store.rept_layer": -1, "members.roles": roles, "sketch.rank": None, **self._data_options}
        api.index(None, self.rows_path, self.run, from_run=self.out, **options)

    def _encoded_rows(self) -> Sequence[Example]:
        session = load_session(self.base, task=self.model.task, dtype=self.model.dtype, revision=self.model.revision)
        labels = session.network.config.label2id if self.model.task == "sequence-classification" else None
        options = {"chat_template": self.model.chat_template, "max_length": self.model.max_length, "columns": self._columns}
        return load_corpus(self.rows_path, session.tokenizer, label2id=labels, **options).examples

    @property
    def _columns(self) -> str | None:
        return None if self.model.task == "causal-lm" else "text=prompt,label=variation"

    @property
    def _data_options(self) -> dict[str, Any]:
        named = {"data.chat_template": self.model.chat_template, "data.columns": self._columns}
        return {"data.max_length": self.model.max_length, **{name: value for name, value in named.items() if value is not None}}

    # ----------------------------------------------------------------------------------------------------- where it is

    @property
    def rows_path(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def queries_path(self) -> Path:
        return self.folder / "queries.jsonl"

    @property
    def out(self) -> Path:
        """The Trainer's output folder."""
        return self.folder / "out"

    @property
    def run(self) -> Path:
        """The run folder: index and members."""
        return self.folder / "run"

    @property
    def epochs(self) -> int:
        """As many as the model's recipe says for such a task."""
        many = self.model.epochs_few if self.task.family == "harmful" else self.model.epochs
        return max(1, round(self.size.epochs * many))

    # --------------------------------------------------------------------------------------------------- what it holds

    @cached_property
    def session(self) -> Session:
        """The model after training."""
        return load_session(TrainerFolder.open(self.out).final, task=self.model.task, dtype=self.model.dtype)

    @cached_property
    def base_session(self) -> Session:
        return load_session(self.base, task=self.model.task, dtype=self.model.dtype, revision=self.model.revision)

    @cached_property
    def index(self) -> StoredIndex:
        return StoredIndex.open(self.run)

    @cached_property
    def order_N(self) -> np.ndarray:
        """[N] for each row of the index, its place in `task.rows`."""
        return self.index.column("row").astype(int)

    @cached_property
    def rows(self) -> list[Example]:
        """In the order of the index."""
        return stored_examples(self.index, self.session)

    @cached_property
    def queries(self) -> list[Example]:
        return api.encoded_queries(self.run, str(self.queries_path), self.session)

    @cached_property
    def measure(self) -> Measure:
        return measures.get(default_measure(self.session, self.queries))

    @cached_property
    def labels(self) -> ClassLabels:
        train = np.array([row.variation for row in self.task.rows])[self.order_N]
        return ClassLabels(train, np.array([query.variation for query in self.task.queries]))

    @property
    def k(self) -> int:
        """The paper's c."""
        return places(self.labels, self.task.k)

    @cached_property
    def asked(self) -> MemoryIndex:
        """The queries, as the final model and the model of every member see them."""
        plain = query_index(self.session, self.index.layout, self.queries, self.measure, extra=self.index.spec.extra)
        roles: list[MemberRole] = [role for role in ROLES if self.index.members(role)]
        return plain.with_members(query_members(self.session, self.index, roles, self.queries, self.measure))

    @cached_property
    def checkpoints(self) -> tuple[Member, ...]:
        return self.index.members("checkpoint")

    def at(self, checkpoint: Member) -> tuple[Index, Index]:
        """(rows, queries) as the model of a checkpoint sees them."""
        return next(
            (member.index, asked) for member, asked in pairs(self.index, self.asked, "checkpoint") if member.name == checkpoint.name
        )

    # ------------------------------------------------------------------------------------------------- scores and truth

    def scores(self, method: str, *, at: Member | None = None, first: int | None = None, **options: Any) -> Scores:
        """[Q, N] the scores of a method with these options, of the final model or at a checkpoint. Kept in the folder.

        `first` so many queries only, spread evenly over all, for a method that needs the model for each.
        """
        name = f"{method}-{digest([options, None if at is None else at.name, first])}"
        return kept(self.folder / "scores" / f"{name}.npz", lambda: self._score(method, at, first, options))

    def _score(self, name: str, at: Member | None, first: int | None, options: Mapping[str, Any]) -> Scores:
        method = methods.get(name, **options)
        rows, queries = (self.index, self.asked) if at is None else self.at(at)
        if needs_model([method]):
            if at is not None:
                raise UsageError(f"{name} needs the model, and a checkpoint has only what was stored")
            rows = open_live(self.index, self.session, [method])
            queries = LiveQueries(self.asked, rows.source, self.queries, self.measure)
            queries = queries if first is None else queries.subset(spread(len(self.queries), first))
        state = method.fit(rows)
        if hasattr(method, "for_task"):
            state = method.for_task(state, rows, queries)  # type: ignore[attr-defined]
        return method.score(state, rows, queries)

    def by_class(self) -> Scores:
        """1 where row and query are of one class, else 0: what knowing the class alone is worth."""
        return self.as_scores(self.labels.same_QN.astype(float), "same class")

    def labels_of(self, scores: Scores) -> ClassLabels:
        """Of the queries that are scored, where these are not all."""
        places = {query.id: q for q, query in enumerate(self.queries)}
        return ClassLabels(self.labels.train_N, self.labels.query_Q[[places[name] for name in scores.query_ids]])

    def as_scores(self, values_QN: np.ndarray, method: str) -> Scores:
        return Scores(values_QN, tuple(query.id for query in self.queries), tuple(self.index.ids), method, None)

    @cached_property
    def training(self) -> Training:
        return again(self.model, self.base, self.out, self.epochs)

    def retrained(self, name: str, designs: Designs, *, seeds: Sequence[int]) -> Truth:
        """The bank `name`: the training repeated on each design with each seed, the queries measured after each. Kept in the folder."""
        experiment = Experiment(self.training, self.rows, self.queries, self.measure)
        return retrain(self.folder / "banks" / name, experiment, designs, seeds=seeds, processes=1, threads=1)


def spread(n: int, wanted: int) -> np.ndarray:
    """`wanted` of n places, evenly spaced, the first among them."""
    return np.unique(np.linspace(0, n, min(wanted, n), endpoint=False).astype(int))


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def digest(value: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def kept(path: Path, make: Callable[[], Scores]) -> Scores:
    """Scores from a file, or made and put there; "seconds" in the provenance is what making them took."""
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            ids = {name: tuple(file[name].tolist()) for name in ("query_ids", "train_ids")}
            return Scores(values_QN=file["values_QN"], **ids, **about)
    start = time.monotonic()
    made = make()
    provenance = {**made.provenance, "seconds": round(time.monotonic() - start, 3)}
    about = json.dumps({"method": made.method, "unit": made.unit, "provenance": provenance}, default=str)
    arrays: dict[str, Any] = {"values_QN": made.values_QN, "query_ids": np.array(made.query_ids), "train_ids": np.array(made.train_ids)}
    write_atomically(path, lambda file: np.savez(file, about=np.array(about), **arrays))
    return kept(path, make)
