"""EK-FAC as the preconditioner of conjugate gradients on the Gauss-Newton operator itself: near exact in a few steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwater.curvature.conjugate import conjugate_gradients
from headwater.curvature.damping import RULE
from headwater.curvature.ekfac import EKFAC
from headwater.curvature.kronecker import Precision, solve_in_basis
from headwater.curvature.operators import check_width, damped_reference, reference_operator, working
from headwater.types import Labels, Solve, Source, State


@dataclass(frozen=True)
class EKFACCG:
    """CG on `(C + lambda) x = b`, C the joint reference operator, preconditioned by `(EK-FAC + lambda)^-1`, which is also where it starts.

    lambda is EK-FAC's own, per block. What EK-FAC leaves out, the products between blocks and what is not diagonal in its basis, the steps
    put back; the true residual says how much is left. The refinement of ASTRA (arXiv 2507.14740), with CG in place of stochastic steps.
    Cost: EK-FAC's fit; a Gauss-Newton product for each query and step (a pass and more), stored rows: two scans a step.
    """

    damping: float | str = RULE
    labels: Labels = "sampled"
    tolerance: float = 0.01
    max_steps: int = 40
    precision: Precision = "auto"

    name = "ekfac_cg"
    summary = "conjugate gradients on the Gauss-Newton operator, preconditioned by EK-FAC"
    reference = "arXiv 2507.14740 (ASTRA); Hestenes and Stiefel 1952"
    cost = "EK-FAC's, and a product with the operator for each query and step"

    def fit(self, source: Source) -> State:
        return EKFAC(damping=self.damping, labels=self.labels, precision=self.precision).fit(source)

    def solve(self, state: State, source: Source, b_KD: Tensor) -> Solve:
        check_width(b_KD, source.layout)
        dtype, b_KD = b_KD.dtype, working(b_KD, source)

        def precondition(r_KD: Tensor) -> Tensor:
            return solve_in_basis(state, source.layout, r_KD)

        solve = conjugate_gradients(
            damped_reference(state, source),
            b_KD,
            precondition=precondition,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            x0=precondition(b_KD),
        )
        return Solve(solve.value.to(dtype), solve.status, solve.steps, solve.residual_K, reference_operator(source)[0])
