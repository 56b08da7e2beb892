"""Retraining: what the model would say had it been trained on other rows. The only place that trains for ground truth.

Designs x seeds trainings, each of which ends in one small file: what is there is not done again, so a killed call goes on where it stopped,
and more designs or seeds cost only what is new.

D designs · S seeds · Q queries · N training rows
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import xxhash

from headwater.atomic import read_json, remove_left_overs, write_json
from headwater.corpus import collate, plan_batches
from headwater.corpus.identity import content_id, fingerprint
from headwater.model.session import Session, Task
from headwater.progress import quiet, say, track
from headwater.truth.bank import noise_ceiling, write_bank
from headwater.truth.design import Designs
from headwater.truth.finetune import Recipe, TrainingDiverged, finetune
from headwater.truth.workers import worker_pool
from headwater.types import DataError, Example, IntegrityError, Measure, Truth, UsageError

FORMAT = 1
TOKEN_BUDGET = 4096  # of a batch of queries; measuring needs no gradient
EXPERIMENT, OUTCOMES = "experiment.json", "outcomes"

Start = Literal["cold", "warm"]


# ------------------------------------------------------------------------------------------------------ how to train


class Training(Protocol):
    """From rows and a seed to a trained model: what is repeated. Picklable where several processes share the work."""

    @property
    def start(self) -> Start: ...

    def describe(self) -> dict[str, Any]:
        """Everything that decides the outcome but rows and seed, as JSON: two descriptions that differ are two experiments."""
        ...

    def __call__(self, rows: Sequence[Example], seed: int) -> Session:
        """Raises TrainingDiverged where the weights are worth nothing."""
        ...


@dataclass(frozen=True, eq=False)
class ByRecipe:
    """Training by `finetune`. `load` gives the model that every training starts from, in whichever process it is called.

    Cold: the base model; the recipe's adapters are drawn from the seed. Warm: the final weights; a model with adapters goes on with these,
    whatever the recipe's `lora` says. The recipe's own seed is replaced by that of the training. Memory: the model twice.
    """

    load: Callable[[], Session]
    recipe: Recipe
    start: Start = "cold"

    @cached_property
    def origin(self) -> Session:
        session = self.load()
        if session.task != "causal-lm":
            raise UsageError(
                f"{session.name} is a classifier, and a recipe trains causal language models only: give a function that makes a Trainer"
            )
        return session

    def describe(self) -> dict[str, Any]:
        model = {"name": self.origin.name, "adapter": self.origin.adapter, "fingerprint": self.origin.fingerprint}
        return {"start": self.start, "model": model, "training": self.recipe.model_dump(mode="json", exclude={"seed"})}

    def __call__(self, rows: Sequence[Example], seed: int) -> Session:
        adapted = hasattr(self.origin.model, "peft_config")
        recipe = self.recipe.model_copy(update={"seed": seed, **({"lora": None} if adapted else {})})
        result = finetune(copy.deepcopy(self.origin.model), rows, recipe, pad_id=self.origin.pad_id)
        return replace(self.origin, model=result.model.eval())

    def __getstate__(self) -> dict[str, Any]:
        """To another process goes the way to load the model, not the model."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class ByTrainer:
    """Training as its user does it: `factory(rows, seed)` gives a Hugging Face Trainer over these rows, ready to train.

    `rows` are Examples (`trainer_rows` makes features of them; `row.row` is a row's number in the data). The factory loads the model anew
    each time and gives the seed to TrainingArguments; `save_strategy="no"` keeps disks free. What it does cannot be read from it, so
    `about` says it: a bank made under another `about` is refused.
    """

    factory: Callable[[Sequence[Example], int], Any]
    about: Mapping[str, Any]
    start: Start = "cold"
    task: Task = "causal-lm"

    def describe(self) -> dict[str, Any]:
        return {"start": self.start, "model": {}, "training": {"trainer": _name(self.factory), **self.about}}

    def __call__(self, rows: Sequence[Example], seed: int) -> Session:
        with torch.random.fork_rng():
            trainer = self.factory(rows, seed)
            trainer.train()
        return Session(trainer.model.eval(), trainer.processing_class, self.task, name=_name(self.factory))


def trainer_rows(rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Features as a Trainer's collator takes them: input_ids, and labels (-100 where the row has no target; a classifier's the class)."""
    return [{"input_ids": row.tokens.tolist(), "labels": _labels(row)} for row in rows]


def _labels(row: Example) -> list[int] | int:
    return row.label if row.label is not None else np.where(row.loss_mask, row.tokens, -100).tolist()


def _name(factory: Callable[..., Any]) -> str:
    named = getattr(factory, "func", factory)  # of a partial
    return getattr(named, "__qualname__", type(named).__name__)


# ------------------------------------------------------------------------------------------------------- experiments


@dataclass(frozen=True, eq=False)
class Experiment:
    """What is trained, on which rows, and what is measured afterwards. A folder of outcomes belongs to one experiment."""

    training: Training
    rows: Sequence[Example]
    queries: Sequence[Example]
    measure: Measure

    def __post_init__(self) -> None:
        for what, examples in (("rows", self.rows), ("queries", self.queries)):
            if not examples:
                raise DataError(f"there are no {what}; at least one is needed")
            if len({example.id for example in examples}) < len(examples):
                raise DataError(f"two {what} have one id, which would make their outcomes the same: number the copies")

    def describe(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "corpus": _contents(self.rows),
            "n_rows": len(self.rows),
            "queries": _contents(self.queries),
            "n_queries": len(self.queries),
            "measure": {"name": self.measure.name, "unit": self.measure.unit},
            **self.training.describe(),
        }

    def outcome(self, kept_N: np.ndarray, seed: int) -> Outcome:
        """Train on the kept rows, then measure every query."""
        rows = [self.rows[n] for n in np.flatnonzero(kept_N).tolist()]
        try:
            session = self.training(rows, seed)
            _check_finite(session)
        except TrainingDiverged as error:
            return Outcome(np.full(len(self.queries), np.nan), diverged=True, why=str(error))
        values_Q = measured(session, self.measure, self.queries)
        return Outcome(np.where(np.isfinite(values_Q), values_Q, np.nan), diverged=False)


@dataclass(frozen=True, eq=False)
class Outcome:
    values_Q: np.ndarray  # float64; NaN where the measure is no number
    diverged: bool
    why: str = ""


@torch.no_grad()
def measured(session: Session, measure: Measure, queries: Sequence[Example]) -> np.ndarray:
    """[Q] float64 the measure of each query under the session's model as it is. Cost: one forward pass over them."""
    session.require_padding()
    values_Q = np.empty(len(queries))
    for positions in plan_batches([query.n_tokens for query in queries], token_budget=TOKEN_BUDGET):
        batch = collate([queries[q] for q in positions], pad_id=session.pad_id).to(session.device)
        values_Q[positions] = measure.fn(session.run(batch), batch).double().cpu().numpy()
    return values_Q


def _check_finite(session: Session) -> None:
    """A Trainer goes on when its loss is NaN, and what it leaves is NaN too."""
    broken = [name for name, parameter in session.model.named_parameters() if not torch.isfinite(parameter).all()]
    if broken:
        raise TrainingDiverged(f"{len(broken)} parameters are not finite after training, the first is {broken[0]}")


def _contents(examples: Sequence[Example]) -> str:
    """Names and contents, in order."""
    return fingerprint(f"{e.id} {_content(e)} {'' if e.alternative is None else _content(e.alternative)}" for e in examples)


def _content(example: Example) -> str:
    return content_id(example.tokens, example.loss_mask, example.label)


# ----------------------------------------------------------------------------------------------------------- retrain


def retrain(
    out: str | Path,
    experiment: Experiment,
    designs: Designs,
    *,
    seeds: Sequence[int],
    processes: int = 1,
    threads: int | None = None,
) -> Truth:
    """Train on each design with each seed, measure every query after each, and write the bank `out` (see `headwater.truth.bank`).

    `threads` of each process; the machine's cores shared among the processes where not given. On the same number of threads the numbers
    do not depend on `processes`, nor on how often the call was killed. A training that diverges is kept, marked, and its outcomes are NaN.
    With more than one process each loads the model for itself, and what `experiment` holds has to be picklable (no lambda, no local
    function).
    Cost: designs x seeds trainings.

    Raises UsageError for options that do not fit, IntegrityError where `out` holds another experiment or a damaged outcome, WorkerDied
    where a process was killed.
    """
    _check(experiment, designs, seeds, processes)
    threads = threads or max(1, (os.cpu_count() or 1) // processes)
    journal = Journal.open(Path(out), experiment)
    trainings = [(kept_N, seed) for seed in dict.fromkeys(seeds) for kept_N in designs.kept_DN]
    missing = [one for one in trainings if not journal.path(*one).exists()]
    if len(missing) < len(trainings):
        say(f"{len(trainings) - len(missing)} of {len(trainings)} trainings are in {out} already")
    for _ in track(_each(journal, missing, processes, threads), total=len(missing), description="retraining"):
        pass
    truth = journal.truth(designs, tuple(dict.fromkeys(seeds)))
    write_bank(out, truth)
    return truth


def _check(experiment: Experiment, designs: Designs, seeds: Sequence[int], processes: int) -> None:
    if designs.kept_DN.shape[1] != len(experiment.rows):
        raise UsageError(
            f"the designs are about {designs.kept_DN.shape[1]} rows, and there are {len(experiment.rows)}: make them for these"
        )
    if empty := [name for name, kept_N in zip(designs.names, designs.kept_DN, strict=True) if not kept_N.any()]:
        raise UsageError(f"design {empty[0]} keeps no row: there is nothing to train on")
    if not seeds or not len(designs):
        raise UsageError(f"{len(designs)} designs and {len(seeds)} seeds, expected at least one of each")
    if processes < 1:
        raise UsageError(f"processes is {processes}, expected 1 or more")


@dataclass(frozen=True, eq=False)
class Journal:
    """A folder of outcomes, each under a name made from the rows that were kept and the seed: what has a file is done."""

    folder: Path
    experiment: Experiment
    description: Mapping[str, Any]

    @staticmethod
    def open(folder: Path, experiment: Experiment) -> Journal:
        """Begin a journal, or go on with one. Raises IntegrityError where the folder is of another experiment."""
        description = experiment.describe()
        if (folder / EXPERIMENT).exists():
            there = read_json(folder / EXPERIMENT, way_out="Remove the folder to begin anew.")
            _check_same(folder, there, description)
            remove_left_overs(folder / OUTCOMES)
        else:
            write_json(folder / EXPERIMENT, description)
        return Journal(folder, experiment, description)

    def path(self, kept_N: np.ndarray, seed: int) -> Path:
        return self.folder / OUTCOMES / f"{xxhash.xxh3_64_hexdigest(np.packbits(kept_N).tobytes())}-{seed}.json"

    def write(self, kept_N: np.ndarray, seed: int, outcome: Outcome) -> None:
        values = [None if np.isnan(value) else float(value) for value in outcome.values_Q]
        write_json(self.path(kept_N, seed), {"seed": seed, "values": values, "diverged": outcome.diverged, "why": outcome.why})

    def read(self, kept_N: np.ndarray, seed: int) -> Outcome:
        path = self.path(kept_N, seed)
        record = read_json(path, way_out="Remove it, and the same command does this training again.")
        values = record.get("values")
        if not isinstance(values, list) or len(values) != len(self.experiment.queries):
            raise IntegrityError(f"{path} has no values of {len(self.experiment.queries)} queries: remove it to train again")
        return Outcome(np.array([np.nan if v is None else v for v in values], dtype=np.float64), record["diverged"], record["why"])

    def truth(self, designs: Designs, seeds: tuple[int, ...]) -> Truth:
        outcomes_DS = [[self.read(kept_N, seed) for seed in seeds] for kept_N in designs.kept_DN]
        values_DSQ = np.array([[outcome.values_Q for outcome in of_design] for of_design in outcomes_DS])
        diverged_DS = np.array([[outcome.diverged for outcome in of_design] for of_design in outcomes_DS])
        if n := int(diverged_DS.sum()):
            why = next(outcome.why for outcome in itertools.chain(*outcomes_DS) if outcome.diverged)
            say(f"{n} of {diverged_DS.size} trainings diverged; they are marked and count for nothing. The first: {why}")
        return Truth(
            outcomes_DSQ=values_DSQ,
            kept_DN=designs.kept_DN,
            train_ids=tuple(row.id for row in self.experiment.rows),
            query_ids=tuple(query.id for query in self.experiment.queries),
            seeds=seeds,
            kind=self.experiment.training.start,
            unit=self.experiment.measure.unit,
            designs=designs.names,
            diverged_DS=diverged_DS,
            recipe=self.description,
            noise_ceiling=noise_ceiling(values_DSQ),
        )


def _check_same(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    before, now = _flat(there), _flat(asked)
    differ = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if differ:
        told = "; ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in differ)
        raise IntegrityError(
            f"{folder} holds outcomes of another experiment: {told}. Outcomes of two experiments are never mixed: give another folder, or "
            "the rows, queries, model and recipe of this one."
        )


def _flat(description: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted name: value}, values as JSON has them: a tuple that was written is read as a list."""
    flat: dict[str, Any] = {}
    for name, value in description.items():
        plain = json.loads(json.dumps(value))
        flat |= _flat(plain, f"{prefix}{name}.") if isinstance(plain, dict) and plain else {f"{prefix}{name}": plain}
    return flat


# --------------------------------------------------------------------------------------------------------- processes


def _each(journal: Journal, trainings: Sequence[tuple[np.ndarray, int]], processes: int, threads: int) -> Iterator[None]:
    """Do the trainings; yields as each has been written."""
    n = min(processes, len(trainings))
    if n > 1:
        yield from _shared_out(journal, trainings, n, threads)
        return
    for kept_N, seed in trainings:
        with _threads(threads), quiet():
            journal.write(kept_N, seed, journal.experiment.outcome(kept_N, seed))
        yield


def _shared_out(journal: Journal, trainings: Sequence[tuple[np.ndarray, int]], n: int, threads: int) -> Iterator[None]:
    with worker_pool(n, _begin, journal, threads) as executor:
        for done in as_completed([executor.submit(_one, *training) for training in trainings]):
            done.result()
            yield


_journal: Journal | None = None  # in a worker: what its trainings belong to


def _begin(journal: Journal, threads: int) -> None:
    global _journal
    _journal = journal
    torch.set_num_threads(threads)


def _one(kept_N: np.ndarray, seed: int) -> None:
    assert _journal is not None, "the worker was begun"
    with quiet():
        _journal.write(kept_N, seed, _journal.experiment.outcome(kept_N, seed))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
