"""The trivial curvature: every direction in parameter space is as stiff as any other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.curvature.operators import check_width
from headwater.types import Solve, Source, State


@dataclass(frozen=True)
class Identity:
    """`C + lambda = I`, so `(C + lambda)^-1 b = b`: influence is the gradient product (TracIn's, the paper's "Hessian-free").

    Nothing is fitted; the 1 stands in the place of lambda. Raises LayoutMismatch where `b` is not as long as a row of the source.
    """

    damping: float | str = 1.0

    name = "identity"
    summary = "no curvature: influence is the gradient product"
    reference = "Pruthi et al. 2020, eq. 1 (one checkpoint)"
    cost = "none"

    def fit(self, source: Source) -> State:
        return {"damping": torch.full((len(source.layout.blocks),), float(self.damping), dtype=torch.float64)}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        return Solve(value=b_KD / float(self.damping), status="closed_form")
