"""The damped Gauss-Newton matrix itself, formed and factored: what every other curvature approximates, for models small enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.operators import check_width, pieces, reference_operator, spread
from headwater.types import Solve, Source, State, UsageError

LARGEST = 8192  # numbers of a row: the matrix has so many squared, 0.5 GB in float64
COLUMNS = 64  # unit vectors that go through the operator together


@dataclass(frozen=True)
class GGN:
    """`C = (1/N) sum_n J_n' H_n J_n` (Martens 2014), dense and joint over all blocks; lambda per block, solved by Cholesky in float64.

    The exact damped Gauss-Newton influence; where the source is stored rows, their empirical Fisher takes its place. Cost: a product with
    the operator for each of D unit vectors, D^3 / 3 multiplications, D^2 numbers of state. Raises UsageError above 8,192 numbers a row:
    `cg` and `ekfac_cg` solve the same system without forming it.
    """

    damping: float | str = RULE

    name = "ggn"
    summary = "the exact damped Gauss-Newton matrix, for small models"
    reference = "Martens 2014; Grosse et al. 2023, eq. 9"
    cost = "a product with the operator for each number of a row"

    def fit(self, source: Source) -> State:
        D = source.layout.size
        if D > LARGEST:
            raise UsageError(
                f"ggn forms a matrix of {D:,} x {D:,}, at most {LARGEST:,} a side: use ekfac_cg or cg, which solve the same system"
            )
        _, operator = reference_operator(source)
        dtype = _dtype(source)
        rows = [operator(_unit_vectors(start, min(start + COLUMNS, D), D, dtype)) for start in range(0, D, COLUMNS)]
        matrix_DD = torch.cat(rows).double()
        matrix_DD = (matrix_DD + matrix_DD.T) / 2
        means = torch.stack([matrix_DD.diagonal()[part].mean() for part in pieces(source.layout, joint=False)])
        damping_L = Damping.parse(self.damping).resolve(means)
        factor_DD = torch.linalg.cholesky(matrix_DD + torch.diag(spread(damping_L, source.layout)))
        return {"damping": damping_L, "cholesky": factor_DD}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        return Solve(torch.cholesky_solve(b_KD.double().T, state["cholesky"]).T.to(b_KD.dtype), "closed_form")


def _unit_vectors(start: int, stop: int, D: int, dtype: torch.dtype) -> Tensor:
    """[stop - start, D] rows `start, start + 1, ...` of the identity matrix, without the others."""
    unit_KD = torch.zeros(stop - start, D, dtype=dtype)
    unit_KD.diagonal(start).fill_(1)
    return unit_KD


def _dtype(source: Source) -> torch.dtype:
    """float64 over stored rows; a live model's own."""
    session = getattr(source, "session", None)
    return torch.float64 if session is None else session.dtype
