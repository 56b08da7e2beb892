"""Influence: what training on a row once more would do to the measure, with the loss's curvature taken into account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from headwater.curvature import Curvature
from headwater.methods.shared import check, check_rows, divide, live, make_scores, rows_key
from headwater.types import Index, Scores, Solve, SolveStatus, Source, State, UsageError

CHUNK_BYTES = 32 << 20  # of float32 right-hand sides that are solved together
CHUNK_BYTES_IN_STEPS = 64 << 20  # the same where a solver takes steps: each step's passes are for all of them
Mode = Literal["stored", "model", "exact"]
MODES: dict[str, str] = {
    "stored": "curvature of the stored rows, solved and scored there: no pass over the model",
    "model": "curvature of the model's own parameters; the solved query is sketched and scored on the stored rows",
    "exact": "curvature of the model's own parameters, scored on whole gradients: nothing is sketched, a pass over the rows",
}


@dataclass(frozen=True)
class Influence:
    """`score(q, n) = -(1/N) h_q' (C + lambda)^-1 g_n` in nats (Koh and Liang 2017, eq. 2, with the measure's sign).

    `curvature` is C; `mode` says where it lives (see `MODES`). The query is solved, once, and then scanned like any gradient, so a new
    query costs a solve and a scan. Damping, how the solves ended and their residuals are in the provenance.
    """

    curvature: Curvature
    mode: Mode = "stored"

    unit = "nats"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UsageError(f"{self.name}: mode is {self.mode!r}, expected one of {', '.join(get_args(Mode))}")

    @property
    def name(self) -> str:
        return self.curvature.name

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({"stored": ["gradient"], "model": ["gradient", "gradient_whole"], "exact": ["gradient_whole"]}[self.mode])

    @property
    def summary(self) -> str:
        return f"influence: {self.curvature.summary}"

    @property
    def reference(self) -> str:
        return getattr(self.curvature, "reference", "")

    @property
    def cost(self) -> str:
        return getattr(self.curvature, "cost", "")

    def fit(self, index: Index) -> State:
        return {**self.curvature.fit(self.source(index)), "rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        if self.mode == "exact":
            held = live(index).hold(len(queries))
            solve = self._solve(state, index, queries, held.put)
            products_QN = live(index).held_products(held)
        else:
            solved_QD = torch.empty(len(queries), index.layout.size)
            solve = self._solve(state, index, queries, partial(_put, solved_QD))
            products_QN = index.products("gradient", solved_QD)
        return make_scores(self, products_QN / -len(index), index, queries, **self.provenance(state, solve))

    def solved(self, state: State, index: Index, queries: Index) -> Tensor:
        """[Q, D] `(C + lambda)^-1 h_q` as it is scanned: in the layout of the index, or of the whole parameters in exact mode."""
        layout = live(index).source.layout if self.mode == "exact" else index.layout
        solved_QD = torch.empty(len(queries), layout.size)
        self._solve(state, index, queries, partial(_put, solved_QD))
        return solved_QD

    @property
    def feature(self) -> str:
        """Whose numbers a query is solved in."""
        return "gradient" if self.mode == "stored" else "gradient_whole"

    def source(self, index: Index) -> Source:
        """What the curvature is fitted on."""
        return index if self.mode == "stored" else live(index).source

    def _solve(self, state: State, index: Index, queries: Index, put: Callable[[int, Tensor], None]) -> Solve:
        """A few queries at a time: a whole gradient is as long as the model, and what is kept of it may be far shorter."""
        n_bytes = CHUNK_BYTES_IN_STEPS if hasattr(self.curvature, "max_steps") else CHUNK_BYTES
        size = max(1, n_bytes // (4 * self.source(index).layout.size))
        solves: list[Solve] = []
        for start in range(0, len(queries), size):
            chunk = np.arange(start, min(start + size, len(queries)))
            solve = self.solve_some(state, index, queries.take(self.feature, chunk))
            put(start, solve.value)
            solves.append(replace(solve, value=torch.empty(0)))
            del solve  # or its value would be held while the next one is computed
        return joined(solves, torch.empty(0))

    def solve_some(self, state: State, index: Index, b_KD: Tensor) -> Solve:
        """[K, D] as it is scanned. A query of zeros, or one that is not finite, is answered without a solver: 0 and NaN."""
        least_K, most_K = torch.aminmax(b_KD, dim=1)  # both NaN where a number is
        usable_K = torch.isfinite(least_K) & torch.isfinite(most_K) & ((least_K != 0) | (most_K != 0))
        all_usable = bool(usable_K.all())
        usable_b_KD = b_KD if all_usable else b_KD[usable_K]
        solve = self.curvature.solve(state, self.source(index), usable_b_KD)
        facts = {**solve.facts, **_cosine(solve.value, usable_b_KD)}
        if all_usable:
            return replace(solve, value=self._scanned(index, solve.value), facts=facts)
        value_KD = b_KD.clone()  # zeros stay zeros, NaN stays NaN
        value_KD[usable_K] = solve.value.to(value_KD.dtype)
        return replace(solve, value=self._scanned(index, value_KD), facts=facts)

    def _scanned(self, index: Index, x_KD: Tensor) -> Tensor:
        return live(index).sketch(x_KD) if self.mode == "model" else x_KD

    def provenance(self, state: State, solve: Solve) -> dict[str, Any]:
        """Curvature, damping, and how the solves ended."""
        damping_K = state["damping"]
        return {
            "feature": self.feature,
            "curvature": {"name": self.name, **asdict(self.curvature)},  # pyright: ignore[reportArgumentType]
            "mode": self.mode,
            "damping": {"rule": str(self.curvature.damping), "least": float(damping_K.min()), "largest": float(damping_K.max())},
            "solve": {
                "status": solve.status,
                "steps": solve.steps,
                **_range(solve.residual_K),
                "residual_of": solve.residual_of,
                **solve.facts,
            },
        }


def _put(solved_QD: Tensor, start: int, x_KD: Tensor) -> None:
    solved_QD[start : start + len(x_KD)] = x_KD


def joined(solves: Sequence[Solve], value_QD: Tensor) -> Solve:
    """How parts of the queries were solved, as one: the worst status, the most steps."""
    if not solves:
        return Solve(value_QD, "closed_form")
    residuals = [solve.residual_K for solve in solves if solve.residual_K is not None]
    return replace(
        max(solves, key=lambda solve: get_args(SolveStatus).index(solve.status)),
        value=value_QD,
        steps=max(solve.steps for solve in solves),
        residual_K=torch.cat(residuals) if len(residuals) == len(solves) else None,
    )


def _cosine(x_KD: Tensor, b_KD: Tensor) -> dict[str, float]:
    """The median cosine of the solved queries to their gradients: where it is near 1, this is the gradient product under another name."""
    if not len(x_KD):
        return {}
    products_K = torch.stack([x_D @ b_D.to(x_D) for x_D, b_D in zip(x_KD, b_KD, strict=True)])
    cosine_K = divide(products_K, x_KD.norm(dim=1) * b_KD.norm(dim=1))  # a run that diverged has 0
    return {"cosine_to_gradient": float(cosine_K.median())}


def _range(residual_K: Tensor | None) -> dict[str, float | None]:
    if residual_K is None or not len(residual_K):
        return {"residual_median": None, "residual_largest": None}
    return {"residual_median": float(residual_K.median()), "residual_largest": float(residual_K.max())}
