"""A randomised low-rank curvature whose complement is damped, not dropped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
from headwater.curvature.spectral import within
from headwater.types import DataError, Solve, Source, State

LARGEST_SHIFT = 1e-3  # over the norm of C W: what no rounding explains


@dataclass(frozen=True)
class Nystrom:
    """`C ~ (C W) (W' C W)^-1 (C W)' = U diag(mu) U'`, W orthonormal from a seed; `x = U (mu + lambda)^-1 U' v + (v - U U' v) / lambda`.

    Frangella, Tropp and Udell 2023, algorithm 2.1 (the shift that keeps the Cholesky factor stable is taken off the eigenvalues again),
    with the inverse by Woodbury. C is the reference operator, joint over the blocks, so lambda is one number, relative to trace / D of
    all of it. Exact where `rank` reaches the rank of C; never above C otherwise. Cost: `rank` products with the operator to fit, all at
    once; 2 K R D multiplications to solve.
    """

    damping: float | str = RULE
    rank: int = 100
    seed: int = 0

    name = "nystrom"
    summary = "a randomised low-rank curvature, the rest damped"
    reference = "Frangella, Tropp and Udell 2023, algorithm 2.1"
    cost = "one scan with many vectors to fit; a small product a solve"

    def __post_init__(self) -> None:
        check_counts(self.name, rank=self.rank)

    def fit(self, source: Source) -> State:
        damping_L = reference_damping(source, self.damping, joint=True)
        drawn_RD = random_vectors(min(self.rank, source.layout.size), source, seed=self.seed)
        w_RD = torch.linalg.qr(drawn_RD.T).Q.T.contiguous()
        values_R, vectors_RD = nystrom_pairs(w_RD, reference_operator(source)[1](w_RD))
        return {"damping": damping_L, "values": values_R, "vectors": vectors_RD.contiguous()}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        v_KD = working(b_KD, source)
        inside_KD, part_KD = within(state, v_KD)
        x_KD = inside_KD + (v_KD - part_KD) / float(state["damping"][0])
        return Solve(x_KD.to(b_KD), "closed_form", **residual_where_cheap(state, source, v_KD, x_KD))


def nystrom_pairs(w_RD: Tensor, image_RD: Tensor) -> tuple[Tensor, Tensor]:
    """(mu [R], U' [R, D]) of `Y (W'Y)^-1 Y'` with `Y = C W`: of C + shift by way of a Cholesky factor of W'Y, less the shift.

    The shift is what rounding may have done to Y; where W'Y is still not positive (Y is less exact than its dtype), it is raised tenfold.
    Raises DataError where W'Y is not positive at all: C is no curvature, or not finite.
    """
    w_RD64, image_RD64 = w_RD.double(), image_RD.double()
    size = float(image_RD64.norm())
    shift = torch.finfo(image_RD.dtype).eps * image_RD.shape[1] ** 0.5 * max(size, torch.finfo(image_RD.dtype).tiny)
    while True:
        shifted_RD = image_RD64 + shift * w_RD64
        middle_RR = w_RD64 @ shifted_RD.T
        factor_RR, failed = torch.linalg.cholesky_ex((middle_RR + middle_RR.T) / 2)
        if not failed:
            break
        if not shift < LARGEST_SHIFT * size:
            raise DataError("the curvature operator is not positive, or not finite: look for overflow in the rows or the model's dtype")
        shift *= 10
    root_RD = torch.linalg.solve_triangular(factor_RR, shifted_RD, upper=False)
    _, singular_R, vectors_RD = torch.linalg.svd(root_RD, full_matrices=False)
    return (singular_R.square() - shift).clamp(min=0).to(w_RD), vectors_RD.to(w_RD)
