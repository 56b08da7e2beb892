"""The paper's tables: does a row of the query's class come first? For the paper's methods, their successors, and what needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.atomic import write_atomically
from headwater.evaluate.classes import accuracy_Q
from headwater.evaluate.figure import mean_figure
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.retrieval import average_precision_Q
from headwater.study.base import encoder_folder
from headwater.study.cells import Cell, Place
from headwater.study.metrics import NAMES, class_figures
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.settings import EKFAC, EKFAC_CG, LISSA, Setting, fisher, scores_or_why_not, setting
from headwater.study.world import World
from headwater.types import HeadwaterError, Scores

TEXTS = ("prompt", "response", "both")
SETTINGS = (
    *map(setting, ("grad_dot", "datainf", "lissa_released", "repsim", "repsim_response", "grad_cos", "relatif")),
    LISSA, fisher(0.1), fisher(100), *EKFAC, EKFAC_CG,
    *map(setting, ("tracin", "less", "trackstar", "trak", "rept", "dda")),
    *(setting(name, text=text) for name in ("lexical", "tfidf") for text in TEXTS),
    *(setting("embedding", text=text) for text in ("prompt", "both")),
    *map(setting, ("length", "loss", "random")),
)  # fmt: skip
PAPER = {"grad_dot": "Hessian-free", "datainf": "DataInf", "lissa_released": "LiSSA, as released", "repsim": "RepSim"}
PAIRED = ("datainf", "lissa_released", "repsim", "fisher", "ekfac")  # held against the plain gradient product, query by query
HEAT = ("grad_dot", "datainf", "lissa_released", "grad_cos", "repsim", "repsim_response")


@dataclass(frozen=True)
class Tables:
    """Accuracy and cover exactly as the paper's code computes them (k = its c), AUROC, average precision and hub share of every method.

    Higher is better but for hub share: the share of queries that have one and the same first row. Every method scores the final model's
    stored rows, or the model itself where it needs whole gradients; those of several checkpoints take the world's. The queries x rows
    tables of a few methods, sorted by class, are kept for the paper's figure 2. Cost: a fit and a scan for each.
    """

    name = "tables"
    summary = "accuracy, cover, AUROC, average precision and hub share of every method and baseline"
    metrics = (
        *NAMES,
        *(f"{name} less grad_dot" for name in ("accuracy", "average_precision")),
        "seconds",
        "diverged",
        "cosine_to_gradient",
    )
    reference = "Li et al. 2024, sections 3.1 to 3.3"

    settings: tuple[Setting, ...] = SETTINGS

    def unfit(self, world: World) -> str:
        return ""

    def __call__(self, world: World) -> Outcome:
        here, cells, found = place(self, world), [], []
        for tried in self.settings:
            scores = with_encoder(world, tried)
            if isinstance(scores, str):
                cells += [here.missing(tried.method, metric, scores, variant=tried.variant) for metric in NAMES]
                continue
            found.append((tried, scores))
            figures = class_figures(scores.values_QN, world.labels_of(scores), world.k)
            cells += [here.cell(tried.method, metric, figure, variant=tried.variant) for metric, figure in figures.items()]
            cells += [here.cell(tried.method, name, value, variant=tried.variant, unit=unit) for name, value, unit in facts_of(scores)]
        by_method = {tried.method: scores for tried, scores in found if not tried.variant}
        cells += paired(here, world, found)
        write_heat(world, {name: by_method[name].values_QN for name in HEAT if name in by_method})
        return Outcome(cells, facts={"paper": PAPER})


def with_encoder(world: World, tried: Setting) -> Scores | str:
    """The scores, or why there are none. The embedding's encoder is the one that the package carries."""
    if tried.method != "embedding":
        return scores_or_why_not(world, tried)
    try:
        return world.scores(tried.method, model=str(encoder_folder()), **tried.options)
    except HeadwaterError as error:
        return str(error)


def facts_of(scores: Scores) -> Iterator[tuple[str, float, str | None]]:
    """What it took, and how a solve ended: 1 where it diverged, and the cosine of what came out to what went in."""
    yield "seconds", float(scores.provenance["seconds"]), "s"
    solve = scores.provenance.get("solve") or {}
    if "status" in solve:
        yield "diverged", float(solve["status"] == "diverged"), None
    if solve.get("cosine_to_gradient") is not None:
        yield "cosine_to_gradient", float(np.mean(solve["cosine_to_gradient"])), None


def paired(here: Place, world: World, found: Sequence[tuple[Setting, Scores]]) -> Iterator[Cell]:
    """Accuracy and average precision less those of the plain gradient product, over the same queries."""
    base = next((scores for tried, scores in found if tried.method == "grad_dot"), None)
    if base is None:
        return
    for tried, scores in found:
        if tried.method not in PAIRED or len(scores.query_ids) != len(base.query_ids):
            continue
        for metric, of_Q in PER_QUERY.items():
            difference_Q = of_Q(scores, world.labels) - of_Q(base, world.labels)
            yield here.cell(tried.method, f"{metric} less grad_dot", mean_figure(difference_Q), variant=tried.variant)


PER_QUERY = {
    "accuracy": lambda scores, labels: accuracy_Q(Ranking(scores.values_QN), labels),
    "average_precision": lambda scores, labels: average_precision_Q(Ranking(scores.values_QN), labels.same_QN),
}


def write_heat(world: World, values: dict[str, np.ndarray]) -> None:
    """`heat.npz`: queries and rows sorted by class, float32, with the classes' codes."""
    classes = sorted({*world.labels.train_N.tolist(), *world.labels.query_Q.tolist()})
    codes = {name: code for code, name in enumerate(classes)}
    train_N, query_Q = (np.array([codes[name] for name in side.tolist()]) for side in (world.labels.train_N, world.labels.query_Q))
    rows, queries = (np.argsort(side, kind="stable") for side in (train_N, query_Q))
    arrays: dict[str, Any] = {name: table_QN[np.ix_(queries, rows)].astype(np.float32) for name, table_QN in values.items()}
    arrays |= {"train_class": train_N[rows], "query_class": query_Q[queries], "classes": np.array(classes)}
    write_atomically(world.folder / "heat.npz", lambda file: np.savez_compressed(file, **arrays))
