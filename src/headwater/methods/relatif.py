"""RelatIF: influence for what it costs, so that rows which move the model everywhere do not come first for every query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from headwater.curvature import Curvature
from headwater.methods.influence import Mode
from headwater.methods.self_influence import influence, self_influences
from headwater.methods.shared import divide, make_scores
from headwater.types import Index, Scores, State, UsageError

Kind = Literal["l", "theta"]


@dataclass(frozen=True)
class RelatIF:
    """Influence over `sqrt(g_n' (C + lambda)^-1 g_n)` (kind "l") or over `||(C + lambda)^-1 g_n||` (kind "theta").

    The row's effect on the query under a limit on its effect on all predictions, or on the parameters (Barshan et al. 2020).
    `curvature` is a name, a mapping with the name and its options, or a curvature; `mode` as in `Influence`. No unit: it ranks. Fit: the
    influence's, and a solve for every row. Score: the influence's. A zero gradient scores 0, a bad row NaN.
    """

    curvature: str | Mapping[str, Any] | Curvature = "fisher"
    kind: Kind = "l"
    mode: Mode = "stored"

    name = "relatif"
    unit = None
    summary = "influence over the row's effect on everything else: mends rows that rank high for every query"
    reference = "Barshan et al. 2020, arXiv 2003.11630"
    cost = "that of the influence, and a solve for every row to fit"

    def __post_init__(self) -> None:
        influence(self.curvature, self.mode)
        if self.kind not in get_args(Kind):
            raise UsageError(f"relatif: kind is {self.kind!r}, expected 'l' (effect on predictions) or 'theta' (effect on parameters)")

    @property
    def requires(self) -> frozenset[str]:
        return influence(self.curvature, self.mode).requires

    def fit(self, index: Index) -> State:
        inner = influence(self.curvature, self.mode)
        state = inner.fit(index)
        of_itself = self_influences(inner, state, index)
        return {**state, "effect": of_itself.value_N.clamp(min=0).sqrt() if self.kind == "l" else of_itself.length_N}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        scores = influence(self.curvature, self.mode).score(state, index, queries)
        relative_QN = divide(torch.from_numpy(scores.values_QN), state["effect"].float())
        return make_scores(self, relative_QN, index, queries, **scores.provenance)
