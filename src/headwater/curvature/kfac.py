"""K-FAC: each block's curvature as a Kronecker product of the covariance of its inputs and that of its output gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.damping import RULE, Damping
from headwater.curvature.kronecker import Precision, fit_bases, precision_over, solve_in_basis
from headwater.curvature.operators import check_width
from headwater.types import Labels, ModelSource, Solve, Source, State


@dataclass(frozen=True)
class KFAC:
    """`C = T A (x) S` per block, `A = E_t[a a']`, `S = E_t[d d']` over positions, T the mean number of positions of a row.

    Positions count as independent (Martens and Grosse 2015, eq. 1 of section 2.3); without T the eigenvalues would be those of a position,
    not of a row, and a damping tuned for one would be wrong for the other. Exact for one row of one position. `labels` "sampled"
    makes it the true Fisher (the Gauss-Newton matrix), "true" the empirical one. Where the source is stored rows, A and S are the second
    moments of their matrices, scaled to the rows' mean square. Cost: one pass (or one scan), and an eigendecomposition of each side.
    """

    damping: float | str = RULE
    labels: Labels = "sampled"
    precision: Precision = "auto"

    name = "kfac"
    summary = "K-FAC: Kronecker-factored curvature per block"
    reference = "Martens and Grosse 2015"
    cost = "one pass over the rows (stored: one scan), eigendecompositions"

    def fit(self, source: Source) -> State:
        state = dict(fit_bases(source, self.labels, precision_over(source, self.precision)))
        eigenvalues_D = kfac_eigenvalues(state, source)
        means = [part.double().mean() for part in source.layout.split(eigenvalues_D).values()]
        return {**state, "eigenvalues": eigenvalues_D, "damping": Damping.parse(self.damping).resolve(torch.stack(means))}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        return Solve(solve_in_basis(state, source.layout, b_KD, precision_over(source, self.precision)), "closed_form")


def kfac_eigenvalues(state: State, source: Source) -> Tensor:
    """[D] `T s_i a_j` for each block; from stored rows, where the two moments have the same trace, `s_i a_j / trace`."""
    layout, live = source.layout, isinstance(source, ModelSource)
    eigenvalues_D = torch.zeros(layout.size, dtype=next(v for k, v in state.items() if k.startswith("left_values/")).dtype)
    parts = layout.split(eigenvalues_D)
    leaders = [layout.blocks[i].name for i in state["right_leader"].tolist()]
    for block, leader, n_positions in zip(layout.blocks, leaders, state["positions"].tolist(), strict=True):
        left_O, right_I = state.get(f"left_values/{block.name}"), state.get(f"right_values/{leader}")
        if left_O is None or right_I is None:
            continue  # a block that no row used has no curvature
        scale = n_positions if live else 1 / max(float(left_O.sum()), torch.finfo(left_O.dtype).tiny)
        parts[block.name].copy_((scale * torch.outer(left_O, right_I)).reshape(block.stored))
    return eigenvalues_D
