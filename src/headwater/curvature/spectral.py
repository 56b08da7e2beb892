"""A curvature known by a few eigenpairs: `C ~ U diag(mu) U'`, the rows of `vectors` being U'. Shared by Arnoldi and Nystrom.

Letters: R eigenpairs · K vectors · D numbers of a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.curvature.operators import Operator
from headwater.types import State


def within(state: State, b_KD: Tensor) -> tuple[Tensor, Tensor]:
    """([K, D] `U (mu + lambda)^-1 U' b`, [K, D] `U U' b`): the solution inside the subspace, and the part of b that lies in it."""
    vectors_RD, damping = state["vectors"].to(b_KD), float(state["damping"][0])
    inside_KR = b_KD @ vectors_RD.T
    return (inside_KR / (state["values"].to(b_KD) + damping)) @ vectors_RD, inside_KR @ vectors_RD


def lanczos(operator: Operator, start_D: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(mu [R] descending, U' [R, D]) the Ritz pairs of a positive semi-definite operator after that many steps from a vector.

    Lanczos with every new vector made orthogonal to all the earlier ones, twice: Arnoldi's iteration on a symmetric matrix. It ends early
    where the vector's subspace is used up; values that are no more than rounding are left out. Cost: a product with the operator a step,
    and 4 R^2 D multiplications.
    """
    basis_RD = torch.zeros(min(steps, len(start_D)), len(start_D), dtype=start_D.dtype, device=start_D.device)
    products_RR = torch.zeros(len(basis_RD), len(basis_RD), dtype=start_D.dtype, device=start_D.device)
    next_D, n = start_D / start_D.norm(), 0
    while n < len(basis_RD):
        basis_RD[n] = next_D
        n += 1
        known_RD, image_D = basis_RD[:n], operator(next_D[None])[0]
        products_RR[:n, n - 1] = known_RD @ image_D
        next_D = _orthogonal(_orthogonal(image_D, known_RD), known_RD)
        if next_D.norm() <= _rounding(next_D) * products_RR[:n, :n].norm():
            break
        next_D = next_D / next_D.norm()
    upper_RR = torch.triu(products_RR[:n, :n])
    values_R, turns_RR = torch.linalg.eigh((upper_RR + torch.triu(upper_RR, 1).T).double())
    kept_R = values_R > _rounding(start_D) * values_R.abs().max()
    return values_R[kept_R].flip(0).to(start_D), turns_RR[:, kept_R].flip(1).T.to(start_D) @ basis_RD[:n]


def _orthogonal(x_D: Tensor, basis_RD: Tensor) -> Tensor:
    return x_D - (basis_RD @ x_D) @ basis_RD


def _rounding(x_D: Tensor) -> float:
    """Relative size of what rounding leaves of a vector that should have vanished."""
    return torch.finfo(x_D.dtype).eps * len(x_D) ** 0.5
