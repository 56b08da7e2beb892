"""Self-influence: how much a row would teach the model about itself. First come rows that nothing else explains, mislabelled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headwater import curvature as curvatures
from headwater.curvature import Curvature
from headwater.methods.influence import Influence, Mode
from headwater.methods.shared import check, check_rows, live, make_scores, rows_key, same_for_every_query
from headwater.types import Index, Scores, State, UsageError

ROWS = 1024  # rows that are solved for together


@dataclass(frozen=True)
class SelfInfluence:
    """`score(q, n) = (1/N) g_n' (C + lambda)^-1 g_n` in nats, whatever the query (Koh and Liang 2017, section 5.4).

    What training on row n once more would add to the log-probability of row n itself. `curvature` is a name, a mapping with the name and
    its options, or a curvature; `mode` as in `Influence`. Fit: a solve for every row. Score: nothing. A zero gradient scores 0, a bad
    row NaN.
    """

    curvature: str | Mapping[str, Any] | Curvature = "fisher"
    mode: Mode = "stored"

    name = "self_influence"
    unit = "nats"
    summary = "what the row would teach the model about itself, whatever the query: finds mislabelled rows"
    reference = "Koh and Liang 2017, section 5.4"
    cost = "a solve for every row to fit, none to score"

    def __post_init__(self) -> None:
        influence(self.curvature, self.mode)

    @property
    def requires(self) -> frozenset[str]:
        return influence(self.curvature, self.mode).requires

    def fit(self, index: Index) -> State:
        inner = influence(self.curvature, self.mode)
        return {"nats": self_influences(inner, inner.fit(index), index).value_N / len(index), "rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        values_QN = same_for_every_query(state["nats"].numpy(), queries)
        return make_scores(self, values_QN, index, queries, measure="the row's own log-probability")


def suspects(index: Index, *, curvature: str | Mapping[str, Any] | Curvature = "fisher", k: int | None = None) -> list[tuple[str, float]]:
    """(id, self-influence in nats) of the k rows, or of all, that only they explain, the most suspicious first.

    For a search for mislabelled rows: read them from the top. Rows without a finite gradient are left out. Cost: a solve for every row.
    """
    nats_N = SelfInfluence(curvature).fit(index)["nats"].numpy()
    order = np.argsort(-np.nan_to_num(nats_N, nan=-np.inf), kind="stable")
    return [(index.ids[int(i)], float(nats_N[i])) for i in order if not np.isnan(nats_N[i])][:k]


class SelfInfluences(NamedTuple):
    """Of every row, in float64: `g' (C + lambda)^-1 g` and `||(C + lambda)^-1 g||`. 0 for a zero gradient, NaN for a bad row."""

    value_N: Tensor
    length_N: Tensor


def self_influences(method: Influence, state: State, index: Index) -> SelfInfluences:
    """By the influence's own solver, block by block: N solves. A curvature that has a shorter way has a function `of_rows` (see Fisher)."""
    source = index if method.mode == "stored" else live(index).source
    of_rows = getattr(method.curvature, "of_rows", None)
    if of_rows is not None:
        value_n, square_n = of_rows(state, source)
        usable_N = torch.cat([torch.isfinite(rows_ND).all(1) for _, rows_ND in source.blocks("gradient")])
        spread_2N = torch.full((2, len(index)), torch.nan, dtype=torch.float64)
        spread_2N[:, usable_N] = torch.stack([value_n, square_n.clamp(min=0).sqrt()])
        return SelfInfluences(*spread_2N)
    found = torch.full((2, len(index)), torch.nan, dtype=torch.float64)
    for start, block_ND in source.blocks("gradient"):
        for rows_KD, offset in zip(block_ND.split(ROWS), range(start, start + len(block_ND), ROWS), strict=True):
            usable_K = torch.isfinite(rows_KD).all(1)
            g_KD = rows_KD[usable_K].double()
            solved_KD = method.curvature.solve(state, source, rows_KD[usable_K]).value.double()
            places = offset + usable_K.nonzero().flatten()
            found[:, places] = torch.stack([(g_KD * solved_KD).sum(1), solved_KD.norm(dim=1)])
    return SelfInfluences(*found)


def influence(curvature: str | Mapping[str, Any] | Curvature, mode: Mode = "stored") -> Influence:
    """Influence with a curvature given by name, by name and options, or as itself. Raises UsageError for one that there is not."""
    if isinstance(curvature, str):
        return Influence(curvatures.get(curvature), mode)
    if not isinstance(curvature, Mapping):
        return Influence(curvature, mode)
    options = dict(curvature)
    if "name" not in options:
        raise UsageError(f"curvature is {options}, expected its name among the options, as in {{'name': 'fisher', 'damping': 0.1}}")
    return Influence(curvatures.get(options.pop("name"), **options), mode)
