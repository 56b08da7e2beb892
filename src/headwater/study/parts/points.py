"""A point of the ablation: one choice of each kind, what it is called in a cell, and what a query has there.

Q queries · N rows · L layers
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from headwater.evaluate.classes import ClassLabels, accuracy_Q, cover_Q
from headwater.evaluate.figure import Figure, mean_figure, proportion_figure
from headwater.evaluate.hubs import hub_corrected, hub_share
from headwater.evaluate.ranking import Ranking
from headwater.evaluate.retrieval import auroc_Q
from headwater.methods.shared import divide
from headwater.study.parts.example_space import Layers
from headwater.study.parts.loss_masks import Mask
from headwater.types import Scores

Score = Literal["dot", "cosine", "relative", "hub-corrected"]
SCORES: tuple[Score, ...] = get_args(Score)
METRICS = ("accuracy", "cover", "auroc")


@dataclass(frozen=True)
class Point:
    """`layers` is "sum", "rank" (the mean over layers of a row's rank in it) or "depth L" (layer L alone)."""

    mask: Mask
    score: Score
    preconditioner: str
    layers: str = "sum"

    @property
    def variant(self) -> str:
        """As cells have it, whose method is the preconditioner."""
        return variant(mask=self.mask, score=self.score, layers=self.layers)

    def changes(self, other: Point) -> dict[str, str]:
        """{kind of choice: the other's} where the two differ."""
        return {
            kind: getattr(other, kind)
            for kind in ("mask", "score", "preconditioner", "layers")
            if getattr(self, kind) != getattr(other, kind)
        }

    def but(self, **changes: str) -> Point:
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]


def variant(**choices: str) -> str:
    """As in `mask=none; score=dot`: `report.study_schema.options` reads it."""
    return "; ".join(f"{name}={value}" for name, value in choices.items())


# --------------------------------------------------------------------------------------------------------------- scores


def values(layers: Layers, score: Score, how: str) -> np.ndarray:
    """[Q, N] `v' P g` summed over the layers' tensors, over what the score divides it by; or the same by layer, put together.

    The mean rank over layers is Vitel and Chhabra's (2511.04715) in place of the sum, which lets one layer's length decide.
    """
    if how == "sum":
        return scored(layers.products_LQN.sum(0), layers.effects_LN.sum(0), layers.squares_LN.sum(0), score)
    by_layer = zip(layers.products_LQN, layers.effects_LN, layers.squares_LN, strict=True)
    if how == "rank":
        return np.mean([Ranking(scored(*layer, score)).ranks_QN for layer in by_layer], axis=0)
    at = layers.numbers.index(int(how.removeprefix("depth ")))
    return scored(layers.products_LQN[at], layers.effects_LN[at], layers.squares_LN[at], score)


def scored(products_QN: Tensor, effects_N: Tensor, squares_N: Tensor, score: Score) -> np.ndarray:
    """`v' P g`; that over |g| ("cosine": the query's length changes no ranking and is left out); over `sqrt(g' P g)` ("relative", RelatIF);
    or as its z over the queries ("hub-corrected")."""
    if score == "hub-corrected":
        return over_queries(products_QN.numpy())
    by_N = {"dot": torch.ones_like(squares_N), "cosine": squares_N.sqrt(), "relative": effects_N.clamp(min=0).sqrt()}[score]
    return divide(products_QN, by_N).numpy()


def over_queries(values_QN: np.ndarray) -> np.ndarray:
    n_queries, n_rows = values_QN.shape
    ids = tuple(map(str, range(n_queries))), tuple(map(str, range(n_rows)))
    return hub_corrected(Scores(values_QN, *ids, "", None)).values_QN


# ---------------------------------------------------------------------------------------------------------------- marks


@dataclass(frozen=True, eq=False)
class Marks:
    """What each query has by each metric, NaN where it is undefined; and the share of queries with one and the same first row."""

    by_query: Mapping[str, np.ndarray]
    hub_share: Figure

    def figures(self) -> dict[str, Figure]:
        hits_Q = self.by_query["accuracy"]
        accuracy = proportion_figure(int(np.nansum(hits_Q)), int(np.isfinite(hits_Q).sum()))
        others = {name: mean_figure(self.by_query[name]) for name in METRICS if name != "accuracy"}
        return {"accuracy": accuracy, **others, "hub_share": self.hub_share}


def marks(values_QN: np.ndarray, labels: ClassLabels, k: int) -> Marks:
    ranking = Ranking(np.asarray(values_QN, dtype=np.float64))
    by_query = {"accuracy": accuracy_Q(ranking, labels), "cover": cover_Q(ranking, labels, k), "auroc": auroc_Q(ranking, labels.same_QN)}
    return Marks(by_query, hub_share(ranking)[0])


Table = Mapping[Point, Marks]


def mean_difference(table: Table, first: Point, second: Point, metric: str) -> Figure:
    """The second's mean less the first's, paired by query."""
    return mean_figure(table[second].by_query[metric] - table[first].by_query[metric])


def points(masks: Sequence[Mask], preconditioners: Sequence[str], depths: Sequence[int]) -> list[Point]:
    """Every combination of mask, score, preconditioner and the two ways to put layers together; by depth, dot and cosine alone."""
    whole = [Point(mask, score, name, how) for mask in masks for name in preconditioners for score in SCORES for how in ("sum", "rank")]
    single = [Point(mask, score, "none", f"depth {layer}") for mask in masks for score in ("dot", "cosine") for layer in depths]
    return whole + single
