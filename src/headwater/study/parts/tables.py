"""The paper's tables: does a row of the query's class come first? For the paper's methods, their successors, and what needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from headwater.atomic import write_atomically
from headwater.evaluate.classes import ClassLabels
from headwater.study.base import encoder_folder
from headwater.study.metrics import NAMES, class_figures
from headwater.study.parts.part import Outcome, place
from headwater.study.world import World
from headwater.types import HeadwaterError, Scores, UsageError


@dataclass(frozen=True)
class Variant:
    """A method with options. `variant` is what tells it from another of its name; `paper` its name in the paper, where it has one there;
    `first` so many queries alone are scored, where each of them needs the model."""

    method: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    variant: str = ""
    paper: str = ""
    first: int | None = None


VARIANTS = (
    Variant("grad_dot", paper="Hessian-free"),
    Variant("datainf", paper="DataInf"),
    Variant("lissa_released", paper="LiSSA, as released"),
    Variant("repsim", paper="RepSim"),
    Variant("repsim_response"),
    Variant("grad_cos"),
    Variant("relatif"),
    Variant("lissa", {"max_steps": 100}),
    Variant("fisher"),
    Variant("fisher", {"damping": "100 * mean_eigenvalue"}, "damping=100"),
    Variant("ekfac", {"mode": "model"}),
    Variant("ekfac", {"mode": "model", "damping": "100 * mean_eigenvalue"}, "damping=100"),
    Variant("ekfac_cg", {"mode": "model", "damping": "100 * mean_eigenvalue", "max_steps": 10}, "damping=100", first=10),
    Variant("tracin"),
    Variant("less"),
    Variant("trackstar"),
    Variant("trak"),
    Variant("rept"),
    Variant("dda"),
    *(Variant(name, {"text": text}, f"text={text}") for name in ("lexical", "tfidf") for text in ("prompt", "response", "both")),
    Variant("embedding", {"text": "prompt"}, "text=prompt"),
    Variant("embedding", {"text": "both"}, "text=both"),
    Variant("length"),
    Variant("loss"),
    Variant("random"),
)
HEAT = ("grad_dot", "datainf", "lissa_released", "grad_cos", "repsim", "repsim_response")


@dataclass(frozen=True)
class Tables:
    """Accuracy and cover exactly as the paper's code computes them (k = its c), AUROC, average precision and hub share of every method.

    Higher is better but for hub share: the share of queries that have one and the same first row. Every method scores the final model's
    stored rows, or the model itself where it needs whole gradients; those of several checkpoints take the world's. The queries x rows
    tables of a few methods, sorted by class, are kept for the paper's figure 2. Cost: a fit and a scan for each.
    """

    name: ClassVar[str] = "tables"
    summary: ClassVar[str] = "accuracy, cover, AUROC, average precision and hub share of every method and baseline"
    reference: ClassVar[str] = "Li et al. 2024, sections 3.1 to 3.3"

    variants: tuple[Variant, ...] = VARIANTS

    def unfit(self, world: World) -> str:
        return ""

    def __call__(self, world: World) -> Outcome:
        here, cells, heat = place(self, world), [], {}
        for variant in self.variants:
            named = {"variant": variant.variant}
            try:
                scores = scored(world, variant)
            except HeadwaterError as error:
                cells += [here.missing(variant.method, metric, str(error), **named) for metric in NAMES]
                continue
            figures = class_figures(scores.values_QN, labels_of(world, scores), world.k)
            cells += [here.cell(variant.method, metric, figure, **named) for metric, figure in figures.items()]
            cells.append(here.cell(variant.method, "seconds", scores.provenance["seconds"], unit="s", **named))
            cells += [here.cell(variant.method, name, value, **named) for name, value in solved(scores)]
            if variant.method in HEAT and not variant.variant:
                heat[variant.method] = scores.values_QN
        write_heat(world, heat)
        return Outcome(cells, facts={"paper": {variant.method: variant.paper for variant in self.variants if variant.paper}})


def scored(world: World, variant: Variant) -> Scores:
    options = dict(variant.options)
    if variant.method == "embedding":
        options["model"] = str(encoder_folder())
    try:
        return world.scores(variant.method, first=variant.first, **options)
    except ValueError as error:
        if isinstance(error, HeadwaterError):
            raise
        raise UsageError(f"{variant.method}: {error}") from error


def labels_of(world: World, scores: Scores) -> ClassLabels:
    """Those of the queries that are scored."""
    places = {query.id: q for q, query in enumerate(world.queries)}
    return replace(world.labels, query_Q=world.labels.query_Q[[places[name] for name in scores.query_ids]])


def solved(scores: Scores) -> Iterator[tuple[str, float]]:
    """How a solve ended, of the methods that solve: 1 where it diverged, and the cosine of what came out to what went in."""
    solve = scores.provenance.get("solve") or {}
    if "status" in solve:
        yield "diverged", float(solve["status"] == "diverged")
    if solve.get("cosine_to_gradient") is not None:
        yield "cosine_to_gradient", float(np.mean(solve["cosine_to_gradient"]))


def write_heat(world: World, values: dict[str, np.ndarray]) -> None:
    """`heat.npz`: queries and rows sorted by class, float32, with the classes' codes."""
    classes = sorted({*world.labels.train_N.tolist(), *world.labels.query_Q.tolist()})
    codes = {name: code for code, name in enumerate(classes)}
    train_N, query_Q = (np.array([codes[name] for name in side.tolist()]) for side in (world.labels.train_N, world.labels.query_Q))
    rows, queries = (np.argsort(side, kind="stable") for side in (train_N, query_Q))
    arrays = {name: table_QN[np.ix_(queries, rows)].astype(np.float32) for name, table_QN in values.items()}
    about = {"train_class": train_N[rows], "query_class": query_Q[queries], "classes": np.array(classes)}
    write_atomically(world.folder / "heat.npz", lambda file: np.savez_compressed(file, **arrays, **about))
