"""A task made into a world: a model trained on its rows, an index, a trace, and what removal and retraining say of every traced group.

The stages leave files in a folder; what is there is not made again. Q queries · S seeds · D designs
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

import headwater
from benchmarks.grammars import packed
from benchmarks.verdict.tasks import DATA, TASKS, Task, make
from headwater.atomic import write_atomically, write_json
from headwater.audit import registry
from headwater.audit.run import pass_seconds, run_checks
from headwater.audit.verdict import HALF
from headwater.auditing import open_subject
from headwater.demo.run import greedy_answer
from headwater.index.examples import stored_examples
from headwater.model import measures
from headwater.model.session import Session, load_session
from headwater.model.tiny import tiny_model
from headwater.truth.bank import read_bank
from headwater.truth.design import Designs, all_rows, without_random, without_top
from headwater.truth.finetune import Recipe, finetune
from headwater.truth.retrain import ByRecipe, Experiment, retrain
from headwater.types import Truth, UsageError

PRIMARY = "grad_cos"
BEARING = ("strength", "controls", "patch")  # the checks that leave evidence and train nothing
RAW = (PRIMARY, "lexical", "repsim")  # whose highest score stands beside the verdict
TRACED_SEED = 99  # of the training that is traced; the truth's are 0, 1, ...
APART = 2.0  # standard errors between the group's effect and random rows', for a group that truly matters


@dataclass(frozen=True)
class Size:
    layers: int = 2
    hidden: int = 64
    vocabulary: int = 1024
    pretraining_steps: int = 600
    epochs: int = 6
    lr: float = 3e-3
    batch_rows: int = 20
    rows: int = 300
    queries: int = 42  # of a world
    worlds: int = 2  # of a task
    k: int = 10  # rows of the named group
    seeds: int = 5
    draws: int = 5  # groups of random rows

    def recipe(self, seed: int = 0) -> Recipe:
        return Recipe(epochs=self.epochs, lr=self.lr, batch_rows=self.batch_rows, seed=seed)


SMALL = Size(layers=1, hidden=16, vocabulary=300, pretraining_steps=4, epochs=2, rows=120, queries=4, worlds=1, k=5, seeds=2, draws=2)


def make_base(folder: Path, size: Size) -> Path:
    """The model that all worlds start from, pretrained on running text: wikitext-2's where it is at hand, else the tasks' own words."""
    base = folder / "base"
    if (base / "config.json").exists():
        return base
    rows = [row for name in known_tasks() for row in make(name, 9, n_rows=size.rows, n_queries=size.queries).rows]
    own = "\n".join(f"{row['prompt']} {row['response']}" for row in rows)
    text = (DATA / "valid.txt").read_text(encoding="utf-8") if (DATA / "valid.txt").exists() else own * 20
    shape = {"hidden_size": size.hidden, "intermediate_size": 11 * size.hidden // 4, "num_hidden_layers": size.layers}
    network, tokenizer = tiny_model(0, texts=[text, own], vocab_size=size.vocabulary, **shape)
    pieces = packed(tokenizer(text)["input_ids"], 64, 16 * size.pretraining_steps, 0)
    finetune(network, pieces, Recipe(epochs=1, lr=2e-3, batch_rows=16), pad_id=tokenizer.pad_token_id, description="pretraining")
    network.save_pretrained(base)
    tokenizer.save_pretrained(base)
    return base


def known_tasks() -> tuple[str, ...]:
    """Those whose data is at hand."""
    return tuple(name for name in TASKS if name != "wikitext" or (DATA / "test.txt").exists())


@dataclass(frozen=True)
class World:
    work: Path
    task_name: str
    seed: int
    size: Size

    @cached_property
    def task(self) -> Task:
        return make(self.task_name, self.seed, n_rows=self.size.rows, n_queries=self.size.queries)

    @property
    def folder(self) -> Path:
        return self.work / f"{self.task_name}-{self.seed}"

    @property
    def base(self) -> Path:
        return self.work / "base"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def trace(self) -> None:
        """Rows and queries, the trained model, its index and the trace of all queries."""
        settings, path = json.loads(json.dumps(asdict(self.size))), self.folder / "settings.json"
        if path.exists() and (there := json.loads(path.read_text())) != settings:
            raise UsageError(f"{self.folder} was made with {there}, and {settings} are asked for: choose another --work, or remove it")
        write_json(path, settings)
        if any((self.run / "scores").glob("*/trace.json")):
            return
        self._write("rows", self.task.rows)
        training = ByRecipe(partial(load_session, self.base), self.size.recipe())
        session = training(headwater.corpus.load_corpus(self.folder / "rows.jsonl", training.origin.tokenizer).examples, TRACED_SEED)
        session.model.save_pretrained(self.folder / "model")
        session.tokenizer.save_pretrained(self.folder / "model")
        self._write(
            "queries",
            [query if query["response"] else query | {"response": answer(session, query["prompt"])} for query in self.task.queries],
        )
        options = {"sketch.rank": None, "store.dtype": "float32"}
        run = headwater.index(self.folder / "model", self.folder / "rows.jsonl", self.run, **options)
        headwater.trace(run, queries=self.folder / "queries.jsonl", primary=PRIMARY, k=self.size.k)

    def _write(self, name: str, rows: Sequence[dict[str, str]]) -> None:
        text = "".join(json.dumps({key: row[key] for key in row if key != "about"}) + "\n" for row in rows)
        write_atomically(self.folder / f"{name}.jsonl", text.encode())

    def truth(self, *, processes: int) -> Truth:
        """The bank of removals: none, each query's named group, and random groups of as many rows that all queries share."""
        run = headwater.load(self.run)
        trace = run.newest()
        queries = headwater.api.encoded_queries(self.run, self.folder / "queries.jsonl", load_session(self.base))
        experiment = Experiment(
            training=ByRecipe(partial(load_session, self.base), self.size.recipe()),
            rows=stored_examples(run.index, load_session(self.folder / "model")),
            queries=queries,
            measure=measures.get("response_log_probability"),
        )
        return retrain(
            self.folder / "bank", experiment, self.designs(trace.scores[PRIMARY].values_QN, [query.id for query in queries]),
            seeds=range(self.size.seeds), processes=processes, threads=1,
        )  # fmt: skip

    def designs(self, values_QN: np.ndarray, query_ids: Sequence[str]) -> Designs:
        n_rows, k = values_QN.shape[1], self.size.k
        made = all_rows(n_rows) + without_random(n_rows, k, draws=self.size.draws, seed=self.seed)
        for values_N, query_id in zip(values_QN, query_ids, strict=True):
            made = made + without_top(values_N, k, label=query_id)
        return made

    def evidence(self) -> dict[str, Any]:
        """What the checks that bear on a verdict measured about each query, without any retraining; and their seconds."""
        path = self.folder / "evidence.json"
        if not path.exists():
            subject = open_subject(self.run, base=self.base, training=self.size.recipe().model_dump())
            pass_s = pass_seconds(subject)
            found = run_checks(subject, [registry.get(name) for name in BEARING])
            values = {name: values_Q.tolist() for name, values_Q in found.evidence.items()}
            raw = {name: subject.asked.scores[name].values_QN.max(1).tolist() for name in RAW}
            write_json(path, {"evidence": values, "raw": raw, "seconds": found.seconds, "training_pass_s": pass_s})
        return json.loads(path.read_text())

    def outcomes(self) -> list[dict[str, Any]]:
        """Of each query: how far the measure fell without its group and without random rows, and whether that is a cause."""
        bank = read_bank(self.folder / "bank")
        names = list(bank.designs)
        random_SQ = bank.outcomes_DSQ[[d for d, name in enumerate(names) if name.startswith("random/")]]
        found = []
        for q, query in enumerate(self.task.queries):
            top_S = bank.outcomes_DSQ[names.index(f"top/{self.size.k}/{query['id']}"), :, q]
            found.append(
                {
                    **{name: query[name] for name in ("id", "kind")},
                    "task": self.task_name,
                    "world": self.seed,
                    **effect(top_S, random_SQ[:, :, q]),
                }
            )
        return found


def answer(session: Session, prompt: str) -> str:
    """The model's own, by the most probable tokens; a word where it says nothing at once."""
    return greedy_answer(session, prompt).strip()[:120] or "yes"


def effect(top_S: np.ndarray, random_RS: np.ndarray) -> dict[str, Any]:
    """How much further the measure falls without the group than without as many random rows, in nats, and its standard error.

    Seeds are paired: a seed's shuffle is the same for every design. The error adds what the draw of the random rows does.
    """
    difference_S = random_RS.mean(0) - top_S
    value = float(difference_S.mean())
    draws = float(random_RS.mean(1).var(ddof=1)) / len(random_RS) if len(random_RS) > 1 else 0.0
    error = math.sqrt(float(difference_S.var(ddof=1)) / len(difference_S) + draws)
    return {"effect": value, "standard_error": error, "caused": bool(value > APART * error and value >= HALF)}
