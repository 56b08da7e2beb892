"""Ground truth for a run: its own rows, model and queries, retrained on subsets, into a bank.

Q queries · N training rows
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from headwater import api
from headwater.index.build import open_session
from headwater.index.examples import stored_examples
from headwater.index.read import StoredIndex
from headwater.model import measures
from headwater.model.session import Session
from headwater.progress import say
from headwater.rank.export import newest_trace
from headwater.rank.trace import default_measure
from headwater.recipe import DesignOptions, IndexRecipe, ModelOptions, TruthRecipe
from headwater.training.folder import TrainerFolder
from headwater.truth.design import Corpus, Designs, Options, make_designs
from headwater.truth.finetune import Recipe
from headwater.truth.retrain import ByRecipe, Experiment, retrain
from headwater.truth.trained import ARGUMENTS, lora_of, recipe_of
from headwater.types import DataError, Truth, UsageError


@dataclass(frozen=True)
class RunTruth:
    """A bank that was written, and what is in it."""

    out: Path
    truth: Truth
    seconds: float

    def to_json(self) -> dict[str, Any]:
        n_designs, n_seeds, n_queries = self.truth.outcomes_DSQ.shape
        return {
            "bank": str(self.out),
            "kind": self.truth.kind,
            "designs": n_designs,
            "seeds": n_seeds,
            "queries": n_queries,
            "rows": len(self.truth.train_ids),
            "diverged": self.n_diverged,
            "noise_ceiling": self.truth.noise_ceiling,
            "seconds": round(self.seconds, 1),
        }

    @property
    def n_diverged(self) -> int:
        return 0 if self.truth.diverged_DS is None else int(self.truth.diverged_DS.sum())

    def __str__(self) -> str:
        n_designs, n_seeds, n_queries = self.truth.outcomes_DSQ.shape
        lines = [f"{self.out}: {n_designs} designs x {n_seeds} seeds, {n_queries} queries measured after each ({self.truth.kind} start)"]
        if self.n_diverged:
            lines.append(f"diverged   {self.n_diverged} of {n_designs * n_seeds} trainings: marked, and nothing is averaged over them")
        if self.truth.noise_ceiling is None:
            return "\n".join([*lines, "ceiling    unknown: it takes two seeds and three designs to know the noise"])
        return "\n".join([*lines, f"ceiling    {self.truth.noise_ceiling:.3f}: the rank correlation that a perfect prediction would reach"])


def truth_of_run(
    run: str | Path, recipe: TruthRecipe, *, out: str | Path | None = None, processes: int = 1, threads: int | None = None, data: Any = None
) -> RunTruth:
    """Retrain a run's model on the designs of the recipe, measure the queries after each training, and write a bank.

    `out` is RUN/truth/DESIGN-START where not given. The rows are the live ones of the index, under its ids, and the queries are encoded as
    the rows were. A cold start is from the base model: the recipe's, else the one under the run's adapter, else the one that the run names.
    `data` are the rows of an index of data in memory. See `headwater.truth.retrain.retrain` for processes, resuming and cost.

    Raises UsageError where the base model, the training's recipe or the queries are not known, and what `retrain` raises.
    """
    start, run = time.monotonic(), Path(run)
    index, indexed = StoredIndex.open(run), IndexRecipe.parse(api.load(run).record["recipe"])
    designs = _designs(index, recipe.design)
    session = open_session(indexed.model)
    origin, training = _origin(indexed, recipe, session), _training(indexed, recipe)
    queries = api.encoded_queries(run, _queries(run, recipe), session)
    experiment = Experiment(
        training=ByRecipe(partial(open_session, origin, tokenizer=session.tokenizer), training, recipe.start),
        rows=stored_examples(index, session, data=data),
        queries=queries,
        measure=measures.get(recipe.measure or default_measure(session, queries)),
    )
    out = run / "truth" / f"{recipe.design.kind}-{recipe.start}" if out is None else Path(out)
    truth = retrain(out, experiment, designs, seeds=range(recipe.seeds), processes=processes, threads=threads)
    return RunTruth(out, truth, time.monotonic() - start)


def _designs(index: StoredIndex, options: DesignOptions) -> Designs:
    groups = [str(name) for name in index.column(options.by)] if options.kind == "leave-group-out" else ()
    corpus = Corpus(ids=index.ids, groups=groups, scores_QN=None if options.scores is None else _read_scores(options.scores))
    return make_designs(options.kind, corpus, Options(options.subsets, options.fraction, options.k, options.seed))


def _read_scores(path: str) -> np.ndarray:
    try:
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{path} cannot be read as scores ({error}); expected a .npy file with a number for each row") from error


def _queries(run: Path, recipe: TruthRecipe) -> Any:
    """A file, or the queries of the newest trace as their user wrote them."""
    if recipe.queries is not None:
        return recipe.queries
    if not any((run / "scores").glob("*/trace.json")):
        raise UsageError(f"no queries are given and nothing was traced in {run} yet: name a file of them (--queries FILE)")
    return newest_trace(run) / "queries.jsonl"


# ------------------------------------------------------------------------------------------ where a training starts


def _origin(indexed: IndexRecipe, recipe: TruthRecipe, session: Session) -> ModelOptions:
    """The model that every training starts from."""
    trained = indexed.model
    if recipe.start == "warm":
        if recipe.base is not None:
            raise UsageError("a warm start is from the run's final weights, and a base model is given as well: choose one of the two")
        return trained.model_copy(update={"merge": False})
    plain = {"adapter": None, "merge": False, "zero_adapter": False}
    if recipe.base is not None:
        return trained.model_copy(update={"path": recipe.base, "revision": None, **plain})
    if session.adapter is not None:
        return trained.model_copy(update={"path": session.name, **plain})
    if (base := named_base(indexed)) is not None:
        return trained.model_copy(update={"path": base, "revision": None, **plain})
    raise UsageError(
        f"the run's model, {trained.path}, is the one that was trained, and what it was trained from is not known. Name the base model "
        "(--base MODEL), or start from the final weights (--start warm)."
    )


def named_base(indexed: IndexRecipe) -> str | None:
    """The base member's model, or the weights that HeadwaterCallback saved before the first step."""
    if indexed.members.base is not None:
        return indexed.members.base
    folders = [folder for folder in (indexed.members.from_run, indexed.model.path) if folder and (Path(folder) / ARGUMENTS).is_file()]
    initial = [TrainerFolder.open(folder).initial for folder in folders]
    return next((str(folder) for folder in initial if folder is not None), None)


def _training(indexed: IndexRecipe, recipe: TruthRecipe) -> Recipe:
    """The recipe that is given, with the run's own LoRA where it says nothing of one; else what the Trainer's folder says."""
    adapter = indexed.model.adapter or indexed.model.path
    if recipe.training is not None:
        given = dict(recipe.training)
        if "lora" not in given and (lora := lora_of(adapter)) is not None:
            say(f"the recipe says nothing of adapters: LoRA as in {adapter}")
            given["lora"] = lora.model_dump()
        return parsed_recipe(given)
    folders = [Path(folder) for folder in (indexed.members.from_run, adapter) if folder]
    known = [folder for folder in folders if (folder / ARGUMENTS).is_file() or any(folder.glob(f"checkpoint-*/{ARGUMENTS}"))]
    if not known:
        raise UsageError(
            "how the model was trained is not given, and the run is of no Trainer's output folder: give a recipe (--recipe FILE), a YAML "
            "file with at least `epochs` and `lr`"
        )
    found = recipe_of(known[0])
    say(f"recipe of {known[0]}: {found.model_dump_json(exclude={'seed'})}")
    return found


def parsed_recipe(values: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']} (got {one['input']!r})" for one in error.errors())
        raise UsageError(f"the training's recipe: {wrong}. Its options: {', '.join(Recipe.model_fields)}") from error
