"""DataInf: the mean of the rows' own inverses in place of the inverse of their mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.operators import ROWS, check_width, finite_blocks, mean_eigenvalues, pieces, residual_where_cheap, spread
from headwater.types import Solve, Source, State


@dataclass(frozen=True)
class DataInf:
    """`x = (1/N) sum_n (g_n g_n' + lambda)^-1 v = (1/N) sum_n [v - (v.g_n) / (lambda + ||g_n||^2) g_n] / lambda` per block of the layout.

    Kwon et al. 2024, eq. 5. Their damping, a tenth of the mean over rows and entries of g^2, is the default: that mean is the mean
    eigenvalue of the block's empirical Fisher. The trap: mean and inverse are swapped, so where lambda << ||g_n||^2 the result is
    `v / lambda` less a mean of projections, nearly, whatever the curvature is. Cost: one scan to fit; one to solve, with 2 K N D
    multiplications, and one for the residual.
    """

    damping: float | str = RULE

    name = "datainf"
    summary = "DataInf: the mean over rows of each one's own damped inverse"
    reference = "Kwon et al. 2024, eq. 5"
    cost = "one scan; two scans a solve"

    def fit(self, source: Source) -> State:
        means_L = mean_eigenvalues(finite_blocks(source), source.layout)
        return {"damping": Damping.parse(self.damping).resolve(means_L)}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        taken_KD, n = torch.zeros_like(b_KD), 0
        for block_ND in finite_blocks(source):
            for rows_nD in block_ND.split(ROWS):
                for part, damping in zip(pieces(source.layout, joint=False), state["damping"].tolist(), strict=True):
                    g_nD = rows_nD[:, part].to(b_KD)
                    taken_KD[:, part].addmm_(b_KD[:, part] @ g_nD.T / (damping + g_nD.square().sum(1)), g_nD)
            n += len(block_ND)
        x_KD = (b_KD - taken_KD / max(n, 1)) / spread(state["damping"], source.layout).to(b_KD)
        return Solve(x_KD, "closed_form", **residual_where_cheap(state, source, b_KD, x_KD))
