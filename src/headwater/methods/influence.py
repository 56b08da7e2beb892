"""Influence: what training on a row once more would do to the measure, with the loss's curvature taken into account."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from headwater.curvature import Curvature
from headwater.curvature.operators import damped, reference_operator, residuals, spread
from headwater.methods.shared import check, check_rows, live, make_scores, rows_key, whole
from headwater.types import Index, Scores, Solve, Source, State, UsageError

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
        return frozenset({"gradient"} if self.mode == "stored" else {"gradient", "gradient_whole"})

    @property
    def summary(self) -> str:
        return f"influence: {self.curvature.summary}"

    def fit(self, index: Index) -> State:
        return {**self.curvature.fit(self._source(index)), "rows": rows_key(index)}

    def score(self, state: State, index: Index, queries: Index) -> Scores:
        check(self, index, queries)
        check_rows(state, index)
        solve = self._solve(state, index, whole(queries, self._feature))
        values_QN = self._products(index, solve.value) / -len(index)
        return make_scores(self, values_QN, index, queries, **self._provenance(state, index, solve))

    def solved(self, state: State, index: Index, queries: Index) -> Tensor:
        """[Q, D] `(C + lambda)^-1 h_q` as it is scanned: in the layout of the index, or of the whole parameters in exact mode."""
        solve = self._solve(state, index, whole(queries, self._feature))
        return live(index).sketch(solve.value) if self.mode == "model" else solve.value

    @property
    def _feature(self) -> str:
        return "gradient" if self.mode == "stored" else "gradient_whole"

    def _source(self, index: Index) -> Source:
        return index if self.mode == "stored" else live(index).source

    def _solve(self, state: State, index: Index, b_QD: Tensor) -> Solve:
        """A query of zeros, or one that is not finite, is answered without a solver: 0 and NaN."""
        usable_Q = torch.isfinite(b_QD).all(1) & (b_QD != 0).any(1)
        solve = self.curvature.solve(state, self._source(index), b_QD[usable_Q])
        value_QD = b_QD.clone()  # zeros stay zeros, NaN stays NaN
        value_QD[usable_Q] = solve.value.to(value_QD.dtype)
        return Solve(value_QD, solve.status, solve.steps, solve.residual_K, solve.residual_of)

    def _products(self, index: Index, x_QD: Tensor) -> Tensor:
        if self.mode == "model":
            return index.products("gradient", live(index).sketch(x_QD))
        return index.products(self._feature, x_QD)

    def _provenance(self, state: State, index: Index, solve: Solve) -> dict[str, Any]:
        damping_K = state["damping"]
        return {
            "feature": self._feature,
            "curvature": {"name": self.name, **asdict(self.curvature)},  # pyright: ignore[reportArgumentType]
            "mode": self.mode,
            "damping": {"rule": str(self.curvature.damping), "least": float(damping_K.min()), "largest": float(damping_K.max())},
            "solve": {"status": solve.status, "steps": solve.steps, **_range(solve.residual_K), "residual_of": solve.residual_of},
        }


def reference_residuals(state: State, source: Source, b_KD: Tensor, x_KD: Tensor) -> tuple[str, Tensor]:
    """(operator's name, [K] relative residuals) of any solution on the one shared operator, with the damping the solution used."""
    name, operator = reference_operator(source)
    return name, residuals(damped(operator, spread(state["damping"], source.layout)), b_KD, x_KD)


def _range(residual_K: Tensor | None) -> dict[str, float | None]:
    if residual_K is None or not len(residual_K):
        return {"residual_median": None, "residual_largest": None}
    return {"residual_median": float(residual_K.median()), "residual_largest": float(residual_K.max())}
