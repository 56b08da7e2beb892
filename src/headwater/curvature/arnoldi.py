"""Influence in the subspace of the largest eigenvalues that a Krylov iteration finds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwater.curvature.damping import RULE
from headwater.curvature.operators import (
    check_counts,
    check_width,
    random_vectors,
    reference_damping,
    reference_operator,
    residual_where_cheap,
    working,
)
from headwater.curvature.spectral import lanczos, within
from headwater.types import Solve, Source, State


@dataclass(frozen=True)
class Arnoldi:
    """`x = U (mu + lambda)^-1 U' v`: `steps` of Arnoldi's iteration from a seeded random vector, of which the `rank` largest Ritz pairs.

    Schioppa et al. 2022, section 3 (who take lambda = 0). C is the reference operator, joint over the blocks, so lambda is one number,
    relative to trace / D of all of it. The trap: what lies outside the subspace is dropped, not divided by lambda, and where a query's
    gradient lies mostly outside, the residual says so. Cost: `steps` products with the operator to fit; 2 K R D multiplications to solve.
    """

    damping: float | str = RULE
    steps: int = 100
    rank: int = 50
    seed: int = 0

    name = "arnoldi"
    summary = "the subspace of the largest eigenvalues, by Arnoldi's iteration"
    reference = "Schioppa et al. 2022, section 3"
    cost = "as many scans as steps to fit; a small product a solve"

    def __post_init__(self) -> None:
        check_counts(self.name, steps=self.steps, rank=self.rank)

    def fit(self, source: Source) -> State:
        damping_L = reference_damping(source, self.damping, joint=True)
        start_D = random_vectors(1, source, seed=self.seed)[0]
        values_R, vectors_RD = lanczos(reference_operator(source)[1], start_D, self.steps)
        return {"damping": damping_L, "values": values_R[: self.rank], "vectors": vectors_RD[: self.rank].contiguous()}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        v_KD = working(b_KD, source)
        x_KD, _ = within(state, v_KD)
        return Solve(x_KD.to(b_KD), "closed_form", **residual_where_cheap(state, source, v_KD, x_KD))
