"""The ablation: what counts in the loss, the score, the preconditioner, the layers, one with another; and what each explains.

Q queries · N training rows · D numbers of a gradient row
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from headwater import curvature, methods
from headwater.gradient.live import LiveSource
from headwater.methods.shared import pairs
from headwater.study.cells import Cell, Place
from headwater.study.parts import explained
from headwater.study.parts.example_space import Layers, by_layer, by_layer_solved, fisher_name, layer_numbers, preconditioners
from headwater.study.parts.explained import Question
from headwater.study.parts.loss_masks import MASKS, Mask, loss_gradients, masked, padded_length, padding_id, padding_share
from headwater.study.parts.part import Outcome, place
from headwater.study.parts.points import Marks, Point, marks, points, values, variant
from headwater.study.world import World
from headwater.types import Example, HeadwaterError, Scores, State, UsageError

EKFAC = "ekfac"
FEWEST = 3  # queries: a hub correction needs a spread over them
REPSIM = {"prompt": "repsim", "response": "repsim_response"}


TOLD = ("", " change (one mended)", " change (one put back)", " points", " points (first)", " points (last)", " share")
"""What cells tell of a metric: itself, and in the cells of method "explained" what choices and causes do to it."""


@dataclass(frozen=True)
class Ablation:
    """Accuracy, cover, AUROC and hub share at every point of loss mask x score x preconditioner x layers, at the final model.

    Loss masks: see `loss_masks`; rows and queries are masked alike, and every gradient is that of a row's mean loss. The paper pads to 128
    tokens: `padding` is the share of padding that its class tasks have so (59 to 78 %), and decides the length here, but for harmful and
    backdoor data, whose texts fill 128 tokens: these are padded to the longest row. Scores: `points.scored`. Preconditioners: those of
    `example_space`, each within a weight tensor: none; the paper's damping alone (a tenth of the tensor's mean eigenvalue); DataInf with
    it; the exact empirical Fisher matrix at each of `dampings`; EK-FAC of the model at the default damping, whose curvature is that of the
    summed loss under the same mask. Layers: `points.values`; each alone for the plain dot product and cosine.

    Cells: method is the preconditioner, variant "mask=...; score=...; layers=..."; method "repsim", variant "model=...; text=...". Method
    "explained": see `explained`. The paper's point is the Hessian-free dot product with everything counted, which is also what the released
    LiSSA computes. The best practice is each choice's published mend: the response alone, cosine, the exact Fisher matrix, ranks by layer;
    `damping` is that matrix's, chosen on a run outside of any study. Nothing here is chosen by what comes out.

    Cost: for each mask a pass over rows and queries, two more for EK-FAC, and N^2 D + N^3 a tensor.
    """

    name = "ablation"
    summary = "loss mask x score x preconditioner x layers, RepSim on base and tuned model, and what each choice explains"
    metrics = ("hub_share", *(f"{metric}{what}" for metric in ("accuracy", "cover", "auroc") for what in TOLD))
    reference = "Li et al. 2024, section 4; Vitel and Chhabra 2025 (arXiv 2511.04715) for the layers"

    padding: float = 0.7
    dampings: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    damping: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.padding < 1:
            raise UsageError(f"ablation: padding is {self.padding}, expected a share of all positions, from 0 to below 1")
        if self.damping not in self.dampings:
            raise UsageError(f"ablation: damping {self.damping} is none of the dampings {self.dampings}: give one of them")

    def unfit(self, world: World) -> str:
        if world.model.task != "causal-lm":
            return "a classifier's loss has no prompt, response or padding to mask, and its rows have no response to represent"
        if len(world.task.queries) < FEWEST:
            return f"{len(world.task.queries)} queries: a hub correction needs {FEWEST} or more"
        return ""

    def __call__(self, world: World) -> Outcome:
        here, start = place(self, world), time.monotonic()
        padded = self.length(world)
        table, missing = self.table(world, padded)
        question = self.question(world)
        cells = [
            *(cell for point, found in table.items() for cell in figure_cells(here, point.preconditioner, point.variant, found)),
            *(
                here.missing(EKFAC, metric, because, variant=variant(mask=mask))
                for mask, because in missing.items()
                for metric in ("accuracy", "cover")
            ),
            *repsim(here, world),
            *explained.one_changed(here, table, question),
            *explained.causes(here, table, question),
        ]
        rows = [*world.rows, *world.queries]
        facts = {"padded_length": padded, "padding_share": round(padding_share(rows, padded), 3), "points": len(table)}
        return Outcome(
            cells,
            plots=[explained.figure(table, question), explained.causes_figure(table, question)],
            seconds=time.monotonic() - start,
            facts=facts,
        )

    # --------------------------------------------------------------------------------------------------------- the grid

    def length(self, world: World) -> int:
        """What rows and queries are padded to where padding counts."""
        share = 0.0 if world.task.family in ("harmful", "backdoor") else self.padding
        return padded_length([*world.rows, *world.queries], share=share, most=world.session.max_length)

    def table(self, world: World, length: int) -> tuple[dict[Point, Marks], dict[Mask, str]]:
        """({point: what its queries have}, {mask: why there is no EK-FAC under it})."""
        table: dict[Point, Marks] = {}
        missing: dict[Mask, str] = {}
        depths = layer_numbers(world.index.layout)
        for mask in MASKS:
            pad = partial(masked, mask=mask, length=length, pad_id=padding_id(world.session))
            rows, queries = [pad(row) for row in world.rows], [pad(query) for query in world.queries]
            rows_ND, queries_QD = (loss_gradients(world.session, world.index.layout, some) for some in (rows, queries))
            layers = by_layer(world.index.layout, rows_ND, queries_QD, preconditioners(self.tried(world)))
            try:
                layers[EKFAC] = ekfac(world, rows, rows_ND, queries_QD)
            except HeadwaterError as error:
                missing[mask] = str(error)
            for point in points([mask], list(layers), depths):
                found_QN = values(layers[point.preconditioner], point.score, point.layers)
                table[point] = marks(found_QN, world.labels, world.k)
        return table, missing

    def tried(self, world: World) -> Sequence[float]:
        """A quick world has the default damping and the mended solver's."""
        return tuple(one for one in self.dampings if one in (0.1, self.damping)) if world.size.is_quick else self.dampings

    # ----------------------------------------------------------------------------------------------------- the question

    def question(self, world: World) -> Question:
        mended = fisher_name(self.damping)
        return Question(
            paper=Point("none", "dot", "none"),
            best=Point("prompt and padding", "cosine", mended, "rank"),
            unhubbed="cosine",  # where all queries are of one class, a hub correction takes away the very rows that all of them share
            solved=mended,
            ceiling=marks(world.labels.same_QN.astype(float), world.labels, world.k),
        )


def ekfac(world: World, rows: Sequence[Example], rows_ND: Tensor, queries_QD: Tensor) -> Layers:
    """EK-FAC of the model on these rows. Two passes over them."""
    source = LiveSource(world.session, rows, world.index.layout, keep=("sampled",))
    found = curvature.get(EKFAC)
    state: State = found.fit(source)
    solved_QD, solved_ND = (found.solve(state, source, some).value for some in (queries_QD, rows_ND))
    return by_layer_solved(world.index.layout, rows_ND, solved_QD, solved_ND)


def repsim(here: Place, world: World) -> Iterator[Cell]:
    """By the hidden states of the tuned model and of the model before training, at the end of the prompt and over the response."""
    for text, name in REPSIM.items():
        yield from _scored(here, world, world.scores(name), model="tuned", text=text)
        for member, asked in pairs(world.index, world.asked, "base"):
            method: Any = methods.get(name)
            scores = method.score(method.fit(member.index), member.index, asked)
            yield from _scored(here, world, scores, model="base", text=text)


def _scored(here: Place, world: World, scores: Scores, **choices: str) -> Iterator[Cell]:
    yield from figure_cells(here, "repsim", variant(**choices), marks(scores.values_QN, world.labels, world.k))


def figure_cells(here: Place, method: str, named: str, found: Marks) -> Iterator[Cell]:
    return (here.cell(method, metric, figure, variant=named) for metric, figure in found.figures().items())
