"""The trivial curvature: every direction in parameter space is as stiff as any other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwater.types import LayoutMismatch, Solve, Source, State


@dataclass(frozen=True)
class Identity:
    """`C + lambda = I`, so `(C + lambda)^-1 b = b`: influence is the gradient product (TracIn's, the paper's "Hessian-free").

    Nothing is fitted and there is no damping to choose. Raises LayoutMismatch where `b` is not as long as a row of the source.
    """

    def fit(self, source: Source) -> State:
        return {}

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        if b_KD.shape[-1] != source.layout.size:
            raise LayoutMismatch(
                f"b has {b_KD.shape[-1]} numbers a row, the source's layout {source.layout.size}: they come from different indexes"
            )
        return Solve(value=b_KD, status="closed_form", residual=0.0)
